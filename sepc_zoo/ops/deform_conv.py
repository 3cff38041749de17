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
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        out_dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return deform_conv2d(x, offset, weight, bias, stride, padding).to(out_dtype)
    dtype = torch.promote_types(x.dtype, torch.float32)
    x32, offset, weight = (tensor.to(dtype) for tensor in (x, offset, weight))
    bias = None if bias is None else bias.to(dtype)
    # The operator reads outside of its memory at an offset of NaN.
    no_place, offset = offset.isnan().any(dim=1, keepdim=True), offset.nan_to_num()
    y = torchvision.ops.deform_conv2d(x32, offset, weight, bias, stride=stride, padding=padding)
    return y.masked_fill(no_place, torch.nan).to(x.dtype)
