"""Processes and devices of commands."""

import torch
from accelerate import PartialState

from sepc_zoo.errors import ConfigError
from sepc_zoo.training.accelerator import start_processes


def start_on_device(asked: str | None) -> tuple[PartialState, torch.device]:
    """Join the processes that a launcher has started, if any, and choose a device.

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
