"""Differences between devices, and between PyTorch and other runtimes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


def counting_is_free(device: torch.device) -> bool:
    """Whether a size may depend on tensor values without a wait for the device."""
    return device.type == "cpu"


def to_device(x: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a host tensor to a device, asynchronously on CUDA.

    CUDA keeps the host memory until the copy is done; Apple's Metal does not.
    """
    return x.to(device, dtype, non_blocking=torch.device(device).type == "cuda")


_STANDARD: ContextVar[bool] = ContextVar("standard operators", default=False)


@contextmanager
def standard_operators() -> Iterator[None]:
    """Compute with operators that other runtimes also have, on every device.

    On the CPU, this package has faster forms of deformable convolution and RoIAlign; ONNX and
    OpenVINO only know those of torchvision.
    """
    token = _STANDARD.set(True)
    try:
        yield
    finally:
        _STANDARD.reset(token)


def uses_standard_operators() -> bool:
    """Whether the caller is inside of ``standard_operators``."""
    return _STANDARD.get()
