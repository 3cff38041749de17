"""What depends on the device that tensors are on."""

import torch
from torch import Tensor


def counting_is_free(device: torch.device) -> bool:
    """Whether a tensor's size may depend on what others hold without a wait for a GPU."""
    return device.type == "cpu"


def to_device(x: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the host on another device; only where it may be freed meanwhile, nobody waits.

    CUDA sees to that, Apple's Metal does not.
    """
    return x.to(device, dtype, non_blocking=torch.device(device).type == "cuda")
