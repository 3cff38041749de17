"""Model folders: config.json, model.safetensors and README.md, on disk and on the hub."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sepc_zoo.config import DetectorConfig, config_from_json, config_to_json
from sepc_zoo.errors import UserError
from sepc_zoo.files import write_atomically, write_json
from sepc_zoo.model.detector import Detector
from sepc_zoo.model_card import model_card
from sepc_zoo.zoo import AUTHORS_TAG, AUTHORS_WEIGHTS, model_config

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
HUB_PREFIX, LOCAL_PREFIX = "hf-hub:", "local-dir:"
DEFAULT_ORGANISATION = "sepc-zoo"


class HubError(UserError, RuntimeError):
    """Weights that cannot be had or do not fit; the message says what to do next."""


def save_model(model: Detector, directory: str | Path) -> Path:
    """Write a model folder that ``create_model("local-dir:…")`` builds again, bit for bit.

    Each file is complete before it takes the place of an older one.
    """
    directory = Path(directory)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # Not save_file, which leaves a file that nobody else may read.
    weights = save(state, {"format": "pt"})
    write_atomically(directory / WEIGHTS_FILE, lambda path: path.write_bytes(weights))
    write_json(directory / CONFIG_FILE, config_to_json(model.config))
    card = model_card(model.config)
    write_atomically(directory / CARD_FILE, lambda path: path.write_text(card, encoding="utf-8"))
    return directory


def find_model(name: str, pretrained: bool, **download: Any) -> Path | None:
    """The folder with the weights that a name asks for; None where it asks for none.

    Args:
        download: ``cache_dir``, ``revision``, ``token`` and ``local_files_only``.

    Raises:
        HubError: the weights are not to be had.
    """
    if name.startswith(LOCAL_PREFIX):
        folder = Path(name.removeprefix(LOCAL_PREFIX)).expanduser()
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / file).is_file():
                raise HubError(f"{folder} is no model folder: it has no {file}")
        return folder
    if name.startswith(HUB_PREFIX):
        repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        return _download(repo_id, **(download | ({"revision": revision} if revision else {})))
    if not pretrained:
        return None
    return _download(_published_repo(name), **download)


def _published_repo(name: str) -> str:
    config = model_config(name)
    if config.architecture not in AUTHORS_WEIGHTS:
        raise HubError(
            f"no weights of {name} are published; list_models(pretrained=True) names those that "
            "are, and pretrained_backbone=True starts from ImageNet"
        )
    organisation = os.environ.get("SEPC_ZOO_HUB_ORG", DEFAULT_ORGANISATION)
    return f"{organisation}/{config.architecture}.{config.weights.tag or AUTHORS_TAG}"


def _download(repo_id: str, **download: Any) -> Path:
    at = f" at revision {download['revision']}" if download.get("revision") else ""
    where = f"{repo_id}{at}"
    try:
        files = [hf_hub_download(repo_id, file, **download) for file in (CONFIG_FILE, WEIGHTS_FILE)]
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: expected org/name") from error
    except GatedRepoError as error:
        raise HubError(
            f"{where} is gated: ask for access on its page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{where} does not exist, is not published yet, or is private: check the name, or log "
            "in with `hf auth login`; `sepc-zoo convert` reads the authors' own checkpoints"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{where}: there is no such revision") from error
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"{where} is not in the cache and the hub cannot be reached: connect once, or give a "
            "folder as local-dir:/path"
        ) from error
    except EntryNotFoundError as error:
        raise HubError(
            f"{where} has no {CONFIG_FILE} or no {WEIGHTS_FILE}: it is no model of this library"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise HubError(f"{where}: the hub did not answer as expected: {error}") from error
    return Path(files[0]).parent


def read_config(folder: Path) -> DetectorConfig:
    """The config of a model folder.

    Raises:
        HubError: it is no valid config; names the file and the entry.
    """
    file = folder / CONFIG_FILE
    try:
        return config_from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:  # ConfigError is a ValueError
        raise HubError(f"{file} is no config of a model: {error}") from error


def load_weights(model: Detector, file: Path, trained_as: DetectorConfig) -> None:
    """Load a safetensors file, strictly; where classes differ, rows are carried over by name.

    Raises:
        HubError: the file is damaged, or tensors are missing, left over or misshapen; names them.
    """
    state = read_weights(file)
    if trained_as.label_names != model.config.label_names:
        state |= _carry_over_classes(state, model, trained_as)
    problems = misfits(state, model.state_dict())
    if problems:
        raise HubError(f"{file} does not fit {model.config.architecture}:\n" + "\n".join(problems))
    model.load_state_dict(state, strict=True)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        HubError: the file is missing or damaged.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise HubError(f"{file} cannot be read as safetensors: {error}; fetch it again") from error


def _carry_over_classes(
    state: Mapping[str, Tensor], model: Detector, trained_as: DetectorConfig
) -> dict[str, Tensor]:
    """The classification of ``model``, with the rows of classes that the weights know by name."""
    old_index = {name: i for i, name in enumerate(trained_as.label_names)}
    pairs = [
        (new, old_index[n]) for new, n in enumerate(model.config.label_names) if n in old_index
    ]
    carried = {}
    for key, fresh in model.head.cls.state_dict(prefix="head.cls.").items():
        old = state.get(key)
        if old is None or old.shape[0] != model.config.anchors.per_cell * trained_as.num_classes:
            continue  # reported as missing or misshapen
        rows = fresh.clone().unflatten(0, (-1, model.config.num_classes))
        if pairs:
            new_index, index = (torch.tensor(part) for part in zip(*pairs, strict=True))
            rows[:, new_index] = old.unflatten(0, (-1, trained_as.num_classes))[:, index]
        carried[key] = rows.flatten(0, 1)
    return carried


def misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], most: int = 20) -> list[str]:
    """A line for each tensor that is missing, left over or misshapen, ``most`` at the most."""
    misshapen = [
        f"  {key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    missing = [f"  missing: {key}" for key in wanted if key not in state]
    left_over = [f"  left over: {key}" for key in state if key not in wanted]
    problems = misshapen + missing + left_over
    if len(problems) <= most:
        return problems
    return [*problems[:most], f"  and {len(problems) - most} more"]
