"""The processes and the accelerator that commands run on."""

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

from sepc_zoo.config import ConfigError


def start_processes(cpu: bool) -> PartialState:
    """Join the processes that a launcher has started, if any."""
    return PartialState(cpu=_on_cpu(cpu))


def make_accelerator(amp: str | None, cpu: bool) -> Accelerator:
    """Processes, device and mixed precision.

    Raises:
        ConfigError: the device cannot do what is asked for.
    """
    accelerator = Accelerator(
        mixed_precision=amp or "no", cpu=_on_cpu(cpu), step_scheduler_with_optimizer=False
    )
    if amp == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("--amp fp16 needs a GPU; the CPU can do bf16")
    return accelerator


def _on_cpu(asked: bool) -> bool:
    # On a machine without a GPU accelerate has to be told so: else every process of a launcher
    # takes itself for the only one.
    told = asked or parse_flag_from_env("ACCELERATE_USE_CPU")
    return told or not torch.accelerator.is_available()
