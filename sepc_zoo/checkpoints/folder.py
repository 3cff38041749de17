"""Model folders: config.json, model.safetensors and README.md, written and read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sepc_zoo import __version__
from sepc_zoo.checkpoints.card import model_card
from sepc_zoo.config import (
    ConfigError,
    DetectorConfig,
    UnknownEntriesError,
    config_from_json,
    config_to_json,
)
from sepc_zoo.errors import HubError
from sepc_zoo.files import write_atomically, write_json
from sepc_zoo.models.detector import Detector

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"
MOST_CONFIG_BYTES = 2**24  # 100,000 classes need a third of it
MOST_TENSORS = 20_000  # of a file; timm's largest models have 3,000


def save_model(
    model: Detector,
    directory: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    training: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write a model folder that ``create_model("local-dir:…")`` builds again, bit for bit.

    Each file is complete before it takes the place of an older one.

    Args:
        metrics: ours, as ``validate`` gives them, ``dataset`` that they were measured on,
            ``training``: how it was trained, ``repo_id`` that it will have on the hub: all for the
            model card.
    """
    directory = Path(directory)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # Not save_file, which leaves a file that nobody else may read.
    weights = save(state, {"format": "pt"})
    write_atomically(directory / WEIGHTS_FILE, lambda path: path.write_bytes(weights))
    write_json(directory / CONFIG_FILE, config_to_json(model.config))
    card = model_card(model.config, metrics, dataset, training, repo_id)
    write_atomically(directory / CARD_FILE, lambda path: path.write_text(card, encoding="utf-8"))
    return directory


def read_config(folder: Path) -> DetectorConfig:
    """The config of a model folder.

    Raises:
        HubError: it is no valid config; names the file and the entry.
    """
    file = folder / CONFIG_FILE
    try:
        if file.stat().st_size > MOST_CONFIG_BYTES:
            raise ConfigError(f"it has more than {MOST_CONFIG_BYTES} bytes")
        return config_from_json(json.loads(file.read_text(encoding="utf-8")))
    except UnknownEntriesError as error:
        raise HubError(
            f"{file} is of a newer version than this {__version__}, or no config of this library: "
            f"{error}; try `pip install -U sepc_zoo`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # ConfigError is a ValueError
        raise HubError(f"{file} is no config of a model: {error}") from error


def load_weights(model: Detector, file: Path) -> None:
    """Load a safetensors file, strictly.

    Raises:
        HubError: the file is damaged, or tensors are missing, left over or misshapen; names them.
    """
    state = read_weights(file)
    refuse_misfits(file, state, model)
    model.load_state_dict(state, strict=True)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        HubError: the file is missing or damaged.
    """
    read_shapes(file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise HubError(unreadable(file, error)) from error


def read_shapes(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their values, on the meta device.

    Raises:
        HubError: the file is missing or damaged.
    """
    try:
        with safe_open(file, "pt") as content:
            keys = content.keys()
            if len(keys) > MOST_TENSORS:
                raise HubError(f"{file} has {len(keys)} tensors, {MOST_TENSORS} at most")
            shapes = {key: content.get_slice(key).get_shape() for key in keys}
    except (OSError, SafetensorError) as error:
        raise HubError(unreadable(file, error)) from error
    try:
        return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    except (RuntimeError, TypeError) as error:  # an empty tensor may claim sides of any length
        raise HubError(unreadable(file, "a tensor has an impossible shape")) from error


def unreadable(file: Path, why: object) -> str:
    return f"{file} cannot be read as safetensors: {why!s:.500}; fetch it again"


def refuse_misfits(file: Path, state: Mapping[str, Tensor], model: Detector) -> None:
    """
    Raises:
        HubError: tensors of the file are missing, left over or misshapen; names them.
    """
    problems = misfits(state, model.state_dict())
    if problems:
        raise HubError(f"{file} does not fit {model.config.architecture}:\n" + "\n".join(problems))


def misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], most: int = 20) -> list[str]:
    """A line for each tensor that is missing, left over or misshapen, ``most`` at the most."""
    misshapen = [
        f"  {key} is {tuple(state[key].shape)!s:.200}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    missing = [f"  missing: {key}" for key in wanted if key not in state]
    # These names are a stranger's: without line breaks and codes for the terminal.
    left_over = [f"  left over: {ascii(key)[1:-1]:.200}" for key in state if key not in wanted]
    problems = misshapen + missing + left_over
    if len(problems) <= most:
        return problems
    return [*problems[:most], f"  and {len(problems) - most} more"]
