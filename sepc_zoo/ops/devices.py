"""What depends on the device that tensors are on."""

import torch


def counting_is_free(device: torch.device) -> bool:
    """Whether a tensor's size may depend on what others hold without a wait for a GPU."""
    return device.type == "cpu"
