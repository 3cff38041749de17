"""The processes and the accelerator that commands run on."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env

from sepc_zoo.config import ConfigError


def start_processes(cpu: bool) -> PartialState:
    """Join the processes that a launcher has started, if any."""
    return PartialState(cpu=_on_cpu(cpu))


def make_accelerator(
    amp: str | None, cpu: bool, trackers: Sequence[str] = (), output: Path | None = None
) -> Accelerator:
    """Processes, device, mixed precision, and trackers that write to ``output``.

    Raises:
        ConfigError: the device cannot do what is asked for, or a tracker is not installed.
    """
    AcceleratorState._reset_state()  # of an earlier run in this process, with another precision
    try:
        accelerator = Accelerator(
            mixed_precision=amp or "no",
            cpu=_on_cpu(cpu),
            log_with=list(trackers) or None,
            project_dir=output,
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:
        raise ConfigError(f"--log-with {' '.join(trackers)}: {error}") from error
    if amp == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("--amp fp16 needs a GPU; the CPU can do bf16")
    missing = set(trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ConfigError(f"--log-with {' '.join(missing)}: pip install {' '.join(missing)}")
    return accelerator


def be_deterministic() -> None:
    """The same numbers in every run on one machine, where PyTorch has a way to do it.

    It warns where it has none; on a GPU the gradient of the deformable convolution is such a case.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its start
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def _on_cpu(asked: bool) -> bool:
    # On a machine without a GPU accelerate has to be told so: else every process of a launcher
    # takes itself for the only one.
    told = asked or parse_flag_from_env("ACCELERATE_USE_CPU")
    return told or not torch.accelerator.is_available()
