"""Deformable convolution in the precisions that a model may run in."""

import torch
import torchvision
from torch import Tensor


def deform_conv2d(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """Deformable convolution (Dai et al. 2017), ``(N, C, H, W) -> (N, C', H', W')``.

    ``offset (N, 2 * 9, H', W')`` holds (dy, dx) per tap in pixels of ``x``. Computed in float32
    (float64 stays float64), as the operator knows no bfloat16 on the CPU; the result has the type
    that a convolution would give here.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    out_dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    with torch.autocast(device, enabled=False):
        y = torchvision.ops.deform_conv2d(
            x.to(dtype),
            offset.to(dtype),
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            stride=stride,
            padding=padding,
        )
    return y.to(out_dtype)
