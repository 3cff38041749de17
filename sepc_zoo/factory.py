"""create_model: from a name to a detector."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from sepc_zoo.checkpoints import hub
from sepc_zoo.checkpoints.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_weights,
    read_config,
    read_shapes,
    read_weights,
    refuse_misfits,
)
from sepc_zoo.config import ConfigError, DetectorConfig, from_plain, override, without_credit
from sepc_zoo.errors import HubError
from sepc_zoo.methods import METHODS
from sepc_zoo.models.dense import Detector
from sepc_zoo.registry import model_config, with_classes

MOST_MODULES = 5_000  # of a model; timm's largest have 2,000
MOST_TABLES = 2**28  # bytes that a model has beside its weights; timm's largest have 2**24


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    label_names: Sequence[str] | None = None,
    pretrained_backbone: bool = False,
    checkpoint: str | Path | None = None,
    backbone_kwargs: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **config_overrides: Any,
) -> Detector:
    """Build a detector by name, in eval mode.

    Args:
        name: ``{method}_{backbone}_{neck}[.{tag}]``, ``"hf-hub:org/repo[@revision]"`` or
            ``"local-dir:/path"`` of a model folder; the last two always have weights.
        pretrained: load the published weights of this name from the hub.
        num_classes: 80 unless weights or names say otherwise. Where it differs from what the
            weights know, the classification is started afresh.
        label_names: of the classes; rows of the classification with the same name are kept.
        pretrained_backbone: load timm's ImageNet weights into the backbone.
        checkpoint: a safetensors file with the weights of this very model.
        backbone_kwargs: for ``timm.create_model``.
        cache_dir, revision, token, local_files_only: as in huggingface_hub.
        config_overrides: entries of ``DetectorConfig``, ``channels=128`` or
            ``postprocess={"iou_threshold": 0.6}``.

    Raises:
        ConfigError: the name is unknown (with the nearest ones) or an override does not fit.
        HubError: weights are missing, unreachable or do not fit; the message says what to do.
    """
    folder = hub.find_model(
        name,
        pretrained,
        cache_dir=cache_dir,
        revision=revision,
        token=token,
        local_files_only=local_files_only,
    )
    known = model_config(name) if folder is None else read_config(folder)
    if folder is not None:
        check_weights(folder / WEIGHTS_FILE, known)
    changes = dict(config_overrides)
    fixed = sorted({"architecture", "method", "backbone"} & set(changes))
    if fixed:
        raise ConfigError(f"{fixed}: it is the name of the model that says this, not an override")
    if backbone_kwargs:
        changes["backbone_kwargs"] = {**known.backbone_kwargs, **backbone_kwargs}
    base = with_classes(known, num_classes, label_names)
    if folder is None or changes or base != known:
        base = replace(base, weights=without_credit(base.weights))
    config = override(base, changes)
    try:
        model = build(config, pretrained_backbone=pretrained_backbone and folder is None)
    except OSError as error:
        raise HubError(
            f"weights of backbone {config.backbone} are not to be had: {error}; connect once, or "
            "load a file of timm's with load_backbone"
        ) from error
    if folder is not None:
        load_weights(model, folder / WEIGHTS_FILE, trained_as=known)
    if checkpoint is not None:
        load_weights(model, Path(checkpoint), trained_as=config)
    return model.eval()


def check_weights(file: Path, config: DetectorConfig) -> None:
    """Compare a weights file with its config before memory is taken for the model.

    Raises:
        HubError: there is no such model, it is absurdly large, or tensors are missing, left over or
            misshapen.
    """
    shapes = read_shapes(file)
    try:
        with torch.device("meta"), at_most(MOST_MODULES):
            skeleton = build(config)
        # What is computed and not saved, as tables of positions: no weights file bounds it.
        state = skeleton.state_dict()
        tables = sum(b.nbytes for name, b in skeleton.named_buffers() if name not in state)
        if tables > MOST_TABLES:
            raise ConfigError(f"the model has {tables} bytes of tables, {MOST_TABLES} at most")
    except ConfigError as error:
        raise HubError(f"{file.with_name(CONFIG_FILE)} is no config of a model: {error}") from error
    refuse_misfits(file, shapes, skeleton)


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Stop whoever builds a model of more modules than this, which would take minutes.

    Raises:
        ConfigError: from within the code that builds.
    """
    modules = 0

    def count_module(_: nn.Module, name: str, module: nn.Module | None) -> None:  # noqa: ARG001
        nonlocal modules
        modules += 1
        if modules > count:
            raise ConfigError(f"the model has more than {count} modules")

    handle = register_module_module_registration_hook(count_module)
    try:
        yield
    finally:
        handle.remove()


def load_model(source: str | Path, **kwargs: Any) -> Detector:
    """The model in a folder, or of a repository ``org/name`` on the hub.

    Args:
        kwargs: of ``create_model``.
    """
    name = str(source)
    if not name.startswith((hub.LOCAL_PREFIX, hub.HUB_PREFIX)):
        is_hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@.+)?", name) is not None
        is_folder = Path(source).expanduser().is_dir() or not is_hub_id
        name = (hub.LOCAL_PREFIX if is_folder else hub.HUB_PREFIX) + name
    return create_model(name, **kwargs)


def build(config: DetectorConfig, pretrained_backbone: bool = False) -> Detector:
    """A detector as its config says, with new weights."""
    if config.method not in METHODS:
        raise ConfigError(f"no method {config.method!r}; there are {', '.join(METHODS)}")
    where = f"method_kwargs of {config.method}"
    method = from_plain(METHODS[config.method], config.method_kwargs, where)
    return Detector(config, method, pretrained_backbone)


def load_backbone(model: Detector, path: str | Path) -> None:
    """Load a safetensors file of timm's into the backbone; a classifier in it is left out.

    Raises:
        HubError: the file cannot be read.
        ConfigError: a tensor that the backbone needs is not there or has another shape.
    """
    state = {_flat(key): value for key, value in read_weights(Path(path)).items()}
    trunk = model.backbone.trunk
    wanted = trunk.state_dict()
    problems = [
        key
        for key, value in wanted.items()
        if _flat(key) not in state or state[_flat(key)].shape != value.shape
    ]
    if problems:
        raise ConfigError(
            f"{path} does not fit backbone {model.config.backbone}: {len(problems)} tensors are "
            f"missing or misshapen, the first {problems[:3]}"
        )
    trunk.load_state_dict({key: state[_flat(key)] for key in wanted})


def _flat(key: str) -> str:
    """timm's feature extractors have underscores where the whole model has dots."""
    return key.replace(".", "_")
