"""create_model: from a name to a detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch.utils.flop_counter import FlopCounterMode

from sepc_zoo.checkpoints.folder import (
    load_weights,
    read_config,
    read_model,
    read_weights,
    refuse_misfits,
)
from sepc_zoo.checkpoints.hub import fetch_backbone
from sepc_zoo.checkpoints.layout import WEIGHTS_FILE, metrics_of
from sepc_zoo.checkpoints.sources import find_model
from sepc_zoo.config import MAX_NUMBER, DetectorConfig, override, without_credit
from sepc_zoo.errors import ConfigError, HubError
from sepc_zoo.models.backbone import adapt_channels, flat
from sepc_zoo.models.build import build
from sepc_zoo.models.deform import offset_names
from sepc_zoo.models.detector import Detector
from sepc_zoo.published import PUBLISHED, Published
from sepc_zoo.registry import (
    HUB_ID,
    HUB_PREFIX,
    LOCAL_PREFIX,
    hub_hint,
    model_config,
    neck_name,
    with_classes,
)

CLASSES = ("num_classes", "label_names", "category_ids")


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
        pretrained: load the published weights of this name: from the local store, from the hub, or
            from their publisher, once for all processes.
        num_classes: number of classes; by default those of the weights, or COCO's 80. If it
            differs from the weights, the classification layer is initialised again.
        label_names: names of the classes; classes that the weights know by name keep their rows
            of the classification layer.
        pretrained_backbone: load timm's ImageNet weights into the backbone.
        checkpoint: a safetensors file with the weights of this very model.
        backbone_kwargs: for ``timm.create_model``. ``{"in_chans": C}`` makes a model for images of
            C channels; without ``weights={"mean": ..., "std": ...}`` of C values, channel ``i`` has
            those of ``i % 3`` of RGB. Weights for RGB are adapted in the same way.
        cache_dir: as in huggingface_hub, like the three that follow.
        revision: branch, tag or commit on the hub.
        token: of the hub; by default that of ``hf auth login``.
        local_files_only: ask no server.
        config_overrides: entries of ``DetectorConfig``, ``channels=128`` or
            ``postprocess={"iou_threshold": 0.6}``.

    Raises:
        ConfigError: the name is unknown (with the nearest ones) or an override does not fit.
        HubError: weights are missing, unreachable or do not fit; the message says what to do.
    """
    download: dict[str, Any] = {"cache_dir": cache_dir, "token": token}
    download["local_files_only"] = local_files_only
    folder = find_model(name, pretrained, revision=revision, **download)
    known = model_config(name) if folder is None else read_config(folder)
    changes = dict(config_overrides)
    method = changes.get("method", {})
    if "architecture" in changes or (isinstance(method, Mapping) and "type" in method):
        raise ConfigError("architecture and type of method follow from the model's name")
    if backbone_kwargs:
        changes["backbone"] = {"kwargs": {**known.backbone.kwargs, **backbone_kwargs}}
        weights = changes.get("weights", {})
        if isinstance(weights, Mapping):
            changes["weights"] = {**input_of(known, backbone_kwargs.get("in_chans")), **weights}
    wanted = override(with_classes(known, num_classes, label_names), changes)
    if folder is None or wanted != known:
        wanted = replace(wanted, weights=without_credit(wanted.weights))
    if folder is None:
        model = _new_model(wanted, pretrained_backbone, download)
    else:
        # Load the weights with their own classes, then change the classes.
        config = replace(wanted, **{name: getattr(known, name) for name in CLASSES})
        model = read_model(folder, None if config == known else config)
        model.reset_classifier(wanted.label_names, wanted.category_ids)
    if checkpoint is not None:
        load_weights(model, Path(checkpoint))
    return model.eval()


def input_of(config: DetectorConfig, channels: Any) -> dict[str, list[float]]:
    """Mean and standard deviation for another number of channels, repeated from those known."""
    mean, std = config.weights.mean, config.weights.std
    if type(channels) is not int or channels == len(mean):
        return {}
    repeated = range(min(channels, MAX_NUMBER))
    return {name: [v[i % len(v)] for i in repeated] for name, v in (("mean", mean), ("std", std))}


def _new_model(
    config: DetectorConfig, pretrained_backbone: bool, download: Mapping[str, Any]
) -> Detector:
    name = config.backbone.name
    try:
        file = fetch_backbone(name, **download) if pretrained_backbone else None
        return build(config, file or pretrained_backbone)
    except (OSError, HubError) as error:
        raise HubError(
            f"cannot download the weights of backbone {name}: {error}; or start from a safetensors "
            "file of timm's: --backbone-checkpoint FILE, in Python sepc_zoo.factory.load_backbone"
        ) from error


def load_model(source: str | Path, **kwargs: Any) -> Detector:
    """The model in a folder, or of a repository ``org/name`` on the hub.

    Args:
        source: a path, or an id of the hub. ``"runs/best"`` is a path where there is a folder
            ``runs``.
        kwargs: of ``create_model``.

    Raises:
        HubError: there is no such folder, or as ``create_model``.
    """
    return create_model(_with_prefix(source), **kwargs)


def _with_prefix(source: str | Path) -> str:
    """The name by which ``create_model`` knows a folder or an id of the hub."""
    name = str(source)
    if name.startswith((LOCAL_PREFIX, HUB_PREFIX)):
        return name
    if Path(source).expanduser().is_dir():
        return LOCAL_PREFIX + name
    if Path(source).expanduser().is_file():
        raise HubError(f"{name} is no model folder but a file; load_exported loads exported ones")
    is_path = isinstance(source, Path) or Path(name.partition("/")[0]).is_dir()
    if is_path or not HUB_ID.fullmatch(name):
        raise HubError(f"{name} is no model folder: there is no such folder{hub_hint(name)}")
    return HUB_PREFIX + name


def load_backbone(model: Detector, path: str | Path) -> None:
    """Load a safetensors file of timm's into the backbone; a classifier in it is left out.

    Offsets of deformable convolutions stay as they are. Weights for RGB are adapted to another
    number of channels as timm does it: repeated, and scaled by 3 over their number.

    Raises:
        HubError: the file cannot be read.
        ConfigError: a tensor that the backbone needs is not there or has another shape.
    """
    state = adapt_channels(read_weights(Path(path)), model.config.backbone)
    state = {flat(key): value for key, value in state.items()}
    trunk, name = model.backbone.trunk, model.config.backbone.name
    new = offset_names(trunk)
    wanted = {key: value for key, value in trunk.state_dict().items() if key not in new}
    state = {key: state[flat(key)] for key in wanted if flat(key) in state}
    refuse_misfits(state, wanted, f"{path} does not fit backbone {name}", ConfigError)
    trunk.load_state_dict(state, strict=False)


@dataclass(frozen=True)
class ModelInfo:
    """Size, classes, published weights and metrics of a model."""

    name: str
    method: str
    backbone: str  # timm's name
    neck: str
    label_names: tuple[str, ...]
    parameters: int
    gmacs: float  # billions of multiply-accumulate operations for an image of reference_size
    reference_size: tuple[int, int]  # height and width, pixels
    image_size: tuple[int, int]  # short side and maximum long side of resized images, pixels
    published: tuple[Published, ...]  # published weights, the default ones first
    metrics: Mapping[str, Any] | None  # a model folder's own, from training or validation
    weights_missing: bool = False  # whether it is a model folder without its weights file

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def authors_ap(self) -> float | None:
        """AP on COCO val2017 of the default weights, in percent, as their publisher states it."""
        return self.published[0].ap if self.published else None


def model_info(name: str) -> ModelInfo:
    """Parameters, operations and published results of a model, from its config alone.

    Args:
        name: as in ``create_model``, or a model folder.

    Raises:
        UnknownModelError: the name builds no model.
        HubError: the folder has no config of a model, or is not there.
    """
    metrics, weights_missing = None, False
    if Path(name).is_dir() or "/" in name or ":" in name:
        source = _with_prefix(name)
        folder = find_model(source, pretrained=False, needs_weights=False)
        assert folder is not None  # only a name without a prefix may have none
        config, metrics = read_config(folder), metrics_of(folder)
        weights_missing = not (source.startswith(HUB_PREFIX) or (folder / WEIGHTS_FILE).is_file())
        wanted = f"{config.architecture}.{config.weights.tag}"
    else:
        config, wanted = model_config(name), name
    rows = [row for row in PUBLISHED.values() if wanted in (row.name, row.architecture)]
    parameters, gmacs, size = count_operations(config)
    return ModelInfo(
        name=config.architecture,
        method=config.method.name,
        backbone=config.backbone.name,
        neck=neck_name(config.neck),
        label_names=config.label_names,
        parameters=parameters,
        gmacs=gmacs,
        reference_size=size,
        image_size=config.weights.image_size,
        published=tuple(rows),
        metrics=metrics,
        weights_missing=weights_missing,
    )


def count_operations(config: DetectorConfig) -> tuple[int, float, tuple[int, int]]:
    """Count parameters, and GMACs for one image of the config's size, on the meta device.

    Returns:
        Parameters, GMACs, and height and width of the image in pixels.
    """
    height, width = (-(-side // 32) * 32 for side in config.weights.image_size)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        model = build(config).eval()
        with counter:
            model.forward_layers(torch.empty(1, config.backbone.in_chans, height, width))
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, counter.get_total_flops() / 2 / 1e9, (height, width)
