"""Memory for large tensors."""

import numpy as np
import torch
from torch import Tensor


def new_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the shape and on the device of ``x``, with no values in it yet.

    On the CPU numpy finds the memory for it, as it asks the system for large pages: to touch new
    memory in small ones takes several times as long as what is then done with it.
    """
    dtype = dtype or x.dtype
    if x.device.type != "cpu":
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    memory = torch.from_numpy(np.empty(x.numel() * dtype.itemsize, dtype=np.uint8))
    return memory.view(dtype).view(x.shape)
