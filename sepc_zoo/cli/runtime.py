"""Models and devices that commands ask for."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sepc_zoo.checkpoints.hub import LOCAL_PREFIX
from sepc_zoo.config import override
from sepc_zoo.errors import ConfigError, HubError
from sepc_zoo.export.loaded import find_exported, load_exported
from sepc_zoo.factory import create_model
from sepc_zoo.models.detector import Detector
from sepc_zoo.training.accelerator import start_processes


def model_with_weights(source: str) -> Any:
    """Load the model of a folder, a hub id, or a name with published weights, or an exported file.

    Raises:
        HubError: there are no such weights.
        ExportError: the exported file cannot be loaded.
        UnknownModelError: there is no such name.
    """
    if find_exported(source):
        return load_exported(source)
    return create_model(model_name(source), pretrained=True)


def choose_postprocess(model: Any, **entries: Any) -> None:
    """Change entries of the model's ``postprocess``; None leaves one as it is.

    Raises:
        ConfigError: soft-NMS for an exported file, whose suppression is part of it.
    """
    changes = {name: value for name, value in entries.items() if value is not None}
    if changes.get("soft_nms", "none") != "none" and not isinstance(model, Detector):
        raise ConfigError("--soft-nms: an exported file has hard non-maximum suppression inside")
    model.config = override(model.config, {"postprocess": changes})


def model_name(source: str) -> str:
    """The name by which ``create_model`` knows a model folder, a hub id or a name.

    Raises:
        HubError: the source looks like a path, and there is no such folder.
    """
    if Path(source).expanduser().is_dir():
        return f"{LOCAL_PREFIX}{source}"
    if "/" in source and ":" not in source:
        raise HubError(f"{source}: no such folder; a model on the hub is hf-hub:org/name")
    return source


def start_on_device(asked: str | None) -> tuple[PartialState, torch.device]:
    """Join the processes that a launcher has started, if any.

    Args:
        asked: a device of torch, such as ``cpu`` or ``cuda:1``; None takes the best one.

    Returns:
        The processes, and the device of this one.

    Raises:
        ConfigError: the device does not exist, or does not fit several processes.
    """
    processes = start_processes(cpu=asked == "cpu")
    if processes.num_processes == 1:
        return processes, best_device(asked)
    if asked not in (None, processes.device.type):
        raise ConfigError(
            f"--device {asked}: each of the {processes.num_processes} processes has its own device "
            f"of type {processes.device.type}"
        )
    return processes, processes.device


def best_device(asked: str | None) -> torch.device:
    """The device asked for, or a GPU where there is one.

    Raises:
        ConfigError: the device does not exist.
    """
    if asked:
        try:
            return torch.empty(0, device=asked).device
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"no device {asked!r} here: {error}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
