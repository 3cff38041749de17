"""The processes, the device and the mixed precision of a command."""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import GeneralTracker
from accelerate.utils import parse_flag_from_env
from torch import distributed as dist
from torch.amp.grad_scaler import GradScaler

from sepc_zoo.errors import ConfigError

AMP_DTYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_SCALE = 2.0**16  # first scale of the loss


class RunAccelerator(Accelerator):
    """An ``Accelerator`` whose mixed precision is that of one run.

    accelerate's own holds for the whole process, which may train several models, and is not used.
    """

    def __init__(self, amp: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.amp = amp

    def start_trackers(self, **kwargs: Any) -> None:
        """Start the trackers; arguments as of ``init_trackers``.

        Raises:
            ConfigError: one cannot start, because nobody is logged in or a disk is full.
        """
        try:
            self.init_trackers("tracking", **kwargs)
        except Exception as error:  # trackers have errors of their own
            self.trackers.clear()  # one that has not started cannot finish
            names = [t.name if isinstance(t, GeneralTracker) else str(t) for t in self.log_with]
            raise ConfigError(f"--log-with {' '.join(names)}: cannot start: {error}") from error

    def finish_trackers(self) -> None:
        """Close the trackers; ``end_training`` would also end the group of processes."""
        for tracker in self.trackers:
            tracker.finish()

    @contextmanager
    def autocast(self, autocast_handler: Any = None) -> Iterator[None]:  # noqa: ARG002
        """Compute in mixed precision, where it was asked for."""
        dtype = AMP_DTYPES[self.amp]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            yield


def start_processes(device: str | None = None) -> PartialState:
    """Join the processes of a launcher, if there is one; they leave the group at exit.

    Args:
        device: a device of torch, such as ``cpu`` or ``cuda:1``; None takes a GPU where there is
            one.

    Raises:
        ConfigError: the device does not exist, or does not fit several processes.
    """
    was_initialized = dist.is_available() and dist.is_initialized()
    # Without a GPU accelerate needs cpu=True: else each process of a launcher runs as if alone.
    cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    cpu = cpu or not torch.accelerator.is_available()
    process = PartialState(cpu=cpu)
    if process.use_distributed and not was_initialized:
        atexit.register(process.destroy_process_group)
    if process.num_processes == 1:
        # accelerate keeps the device of an earlier run of this process.
        default = torch.device("cpu") if cpu else process.default_device
        process.device = default if device is None else find_device(device)
    elif device not in (None, process.device.type):
        raise ConfigError(
            f"--device {device}: each of the {process.num_processes} processes has its own device "
            f"of type {process.device.type}"
        )
    return process


def find_device(name: str) -> torch.device:
    """The device of a name; a ConfigError says why it cannot be used."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"no device {name!r} here; give cuda, mps or cpu, or leave --device out ({error})"
        ) from error


def make_accelerator(
    amp: str | None,
    device: str | None = None,
    trackers: Sequence[str | GeneralTracker] = (),
    output: Path | None = None,
) -> RunAccelerator:
    """Set up processes, device, mixed precision, and trackers that write to ``output``."""
    process = start_processes(device)
    if amp == "fp16" and process.device.type == "cpu":
        raise ConfigError("--amp fp16 needs a GPU; the CPU can do bf16")
    try:
        accelerator = RunAccelerator(
            amp,
            cpu=process.device.type == "cpu",
            log_with=list(trackers) or None,
            project_dir=output,
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:
        raise ConfigError(f"--log-with {' '.join(map(str, trackers))}: {error}") from error
    names = {tracker for tracker in trackers if isinstance(tracker, str)}
    missing = names - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ConfigError(f"--log-with {' '.join(missing)}: pip install {' '.join(missing)}")
    return accelerator


def make_scaler(amp: str | None, device: torch.device) -> GradScaler:
    """Make torch's gradient scaler, which also skips steps whose gradient is not finite.

    It skips them on the device, so the host need not wait. Without fp16 its scale is always 1.
    """
    scale = FP16_SCALE if amp == "fp16" else 1.0
    is_supported = device.type != "mps" or amp == "fp16"  # Metal lacks its float64
    return GradScaler(device.type, scale, enabled=is_supported)


def make_deterministic() -> None:
    """Choose the deterministic algorithms of PyTorch, for the same numbers in every run.

    PyTorch warns where it has none, such as for the gradient of deformable convolution on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its start
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
