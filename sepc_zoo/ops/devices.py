"""Differences between devices: waits and asynchronous copies."""

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
