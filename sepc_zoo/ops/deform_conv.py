"""Deformable convolution of a pyramid, in float32, float64 and under autocast.

Without a GPU kernel, ``embedding_bag`` computes a tap of a cell as a weighted sum of four pixels;
one matrix product then multiplies the taps of all levels.
"""

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sepc_zoo.ops.devices import uses_standard_operators

TAPS = 9  # number of taps of a 3x3 kernel
# Set to 1, selects the fused kernel on a GPU for models built afterwards. Not measured yet.
FUSED_VARIABLE = "SEPC_ZOO_FUSED"


def deform_conv2d(
    maps: Sequence[Tensor],
    offsets: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    fused: bool = False,
) -> list[Tensor]:
    """Deformable convolution (Dai et al. 2017) of each level, ``(N, C, H, W) -> (N, C', H', W')``.

    Sums are in float32 (float64 stays float64); the results have the type that a convolution would
    have, in channels-last memory.

    Args:
        offsets: ``(N, 2 * 9, H', W')``: (dy, dx) of each tap of the 3x3 kernel, in pixels of the
            map. NaN gives NaN in its cell.
        fused: use one kernel for all levels on a GPU, except in float64.
    """
    if not maps:
        return []
    if bias is None:
        bias = weight.new_zeros(len(weight))
    device, dtype = maps[0].device.type, maps[0].dtype
    has_autocast = torch.amp.is_autocast_available(device)
    if has_autocast and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
        if uses_standard_operators() or (
            device == "cuda" and (dtype == torch.float64 or not fused)
        ):
            out = _by_torchvision(maps, offsets, weight, bias, stride, padding)
        else:
            out = _by_levels(maps, offsets, weight, bias, stride, padding, dtype)
    return [y.to(dtype) for y in out]


def asks_for_fused() -> bool:
    """Whether new models use the fused kernel on a GPU."""
    return os.environ.get(FUSED_VARIABLE, "0") == "1"


def _by_torchvision(
    maps: Sequence[Tensor],
    offsets: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: int,
) -> list[Tensor]:
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    weight, bias = weight.to(dtype), bias.to(dtype)
    out = []
    for x, offset in zip(maps, offsets, strict=True):
        x, offset = x.to(dtype), offset.to(dtype)
        if uses_standard_operators():
            out.append(torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding))
            continue
        # torchvision's operator reads outside of its memory where an offset is NaN.
        no_place, place = offset.isnan().any(dim=1, keepdim=True), offset.nan_to_num()
        y = torchvision.ops.deform_conv2d(x, place, weight, bias, stride, padding)
        out.append(y.masked_fill(no_place, torch.nan))
    return out


def _by_levels(
    maps: Sequence[Tensor],
    offsets: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Convolve all levels at once, as rows of channels."""
    on_gpu = maps[0].is_cuda
    exact = torch.promote_types(maps[0].dtype, torch.float32)
    rows = _rows_of(maps).to(dtype if on_gpu else exact)
    place = _rows_of(offsets).to(exact)
    kernel = weight.to(rows.dtype).permute(2, 3, 1, 0).flatten(0, 1)  # 9, C, C'
    sizes = [s for x, o in zip(maps, offsets, strict=True) for s in (*x.shape[2:], *o.shape[2:])]
    geometry = sizes, len(maps[0]), stride, padding
    if on_gpu:
        y = fused_op(rows, place, kernel.contiguous(), bias.to(rows.dtype), *geometry)
    else:
        y = gather_and_multiply(rows, place, kernel, bias.to(rows.dtype), *geometry)
    shapes = [(len(offset), *offset.shape[2:]) for offset in offsets]
    levels = y.split([math.prod(shape) for shape in shapes])
    return [
        level.unflatten(0, shape).permute(0, 3, 1, 2)
        for level, shape in zip(levels, shapes, strict=True)
    ]


def _rows_of(maps: Sequence[Tensor]) -> Tensor:
    """Maps ``(N, C, H, W)`` as rows of channels, level by level, ``(pixels, C)``."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in maps])


def gather_and_multiply(
    rows: Tensor,
    offset: Tensor,
    kernel: Tensor,
    bias: Tensor,
    sizes: Sequence[int],
    count: int,
    stride: int,
    padding: int,
) -> Tensor:
    """Deformable convolution of rows ``(pixels, C) -> (cells, C')``.

    Args:
        offset: ``(cells, 2 * 9)``.
        kernel: ``(9, C, C')``.
        sizes: for each level its height and width, and height and width of its result.
        count: number of images.
    """
    index, share, pixel, cell = [], [], 0, 0
    for height, width, out_height, out_width in zip(*(sizes[i::4] for i in range(4)), strict=True):
        cells = count * out_height * out_width
        place = offset[cell : cell + cells].view(count, out_height, out_width, TAPS, 2)
        pixels, parts = pixels_of_taps(place, (height, width), stride, padding)
        index.append(pixels + pixel)
        share.append(parts)
        pixel, cell = pixel + count * height * width, cell + cells
    arguments = (rows, torch.cat(index), torch.cat(share), kernel.flatten(0, 1).t(), bias)
    if torch.is_grad_enabled():  # the taps take nine times the memory of the maps
        return checkpoint(_multiply_taps, *arguments, use_reentrant=False)
    return _multiply_taps(*arguments)


def _multiply_taps(
    rows: Tensor, index: Tensor, share: Tensor, kernel: Tensor, bias: Tensor
) -> Tensor:
    taps = F.embedding_bag(index, rows, mode="sum", per_sample_weights=share)  # cells * 9, C
    return F.linear(taps.view(-1, kernel.shape[1]), kernel, bias)


def pixels_of_taps(
    offset: Tensor, size: Sequence[int], stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Find the four pixels around each tap, and their bilinear weights, ``(N * H' * W' * 9, 4)``.

    Pixels are numbered over the whole batch. Those outside the map have weight 0.

    Args:
        offset: ``(N, H', W', 9, 2)``.
        size: height and width of the map.
    """
    count, rows, columns = offset.shape[:3]
    height, width = size
    tap = torch.arange(3, device=offset.device) - padding
    y = torch.arange(rows, device=offset.device)[:, None, None] * stride + tap.repeat_interleave(3)
    x = torch.arange(columns, device=offset.device)[:, None] * stride + tap.repeat(3)
    row, row_share = _neighbours(offset[..., 0] + y, height)
    column, column_share = _neighbours(offset[..., 1] + x, width)
    image = torch.arange(count, device=offset.device).view(-1, 1, 1, 1, 1, 1)
    pixels = (image * height + row[..., None]) * width + column[..., None, :]
    return pixels.view(-1, 4), (row_share[..., None] * column_share[..., None, :]).view(-1, 4)


def _neighbours(place: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels beside each position on an axis, and their weights ``(..., 2)``."""
    place = place.clamp(-1, length)
    before = place.detach().floor()
    after_share = place - before
    pixel = torch.stack([before, before + 1], dim=-1)
    share = torch.stack([1 - after_share, after_share], dim=-1)
    inside = (pixel >= 0) & (pixel < length)
    return pixel.long().clamp(0, length - 1), share.where(inside | share.isnan(), 0)


# The fused kernel as an operator, which torch.compile and torch.export leave as it is. It has the
# arguments of ``gather_and_multiply``, which computes it on the CPU. The schemas are written out:
# torch 2.6 cannot infer them from a Sequence.
SIZES = "int[] sizes, int count, int stride, int padding"
CONV_SCHEMA = f"(Tensor rows, Tensor offset, Tensor kernel, Tensor bias, {SIZES}) -> Tensor"
GRADIENTS_SCHEMA = (
    f"(Tensor rows, Tensor offset, Tensor kernel, Tensor grad, {SIZES}) -> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("sepc_zoo::deform_conv", mutates_args=(), schema=CONV_SCHEMA)
def fused_op(*arguments: Any) -> Tensor:
    from sepc_zoo.ops.deform_conv_triton import convolve  # Triton is not installed everywhere

    return convolve(*arguments)


@torch.library.custom_op(
    "sepc_zoo::deform_conv_gradients", mutates_args=(), schema=GRADIENTS_SCHEMA
)
def fused_gradients_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from sepc_zoo.ops.deform_conv_triton import gradients

    return gradients(*arguments)


fused_op.register_kernel("cpu")(gather_and_multiply)


@fused_op.register_fake
def _(rows: Tensor, offset: Tensor, kernel: Tensor, *_: Any) -> Tensor:
    return rows.new_empty(len(offset), kernel.shape[2])


@fused_gradients_op.register_fake
def _(rows: Tensor, offset: Tensor, kernel: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(offset), torch.empty_like(kernel)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    rows, offset, kernel, _, *ctx.geometry = inputs
    ctx.save_for_backward(rows, offset, kernel)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if grad.is_cuda:
        of_inputs = fused_gradients_op(*ctx.saved_tensors, grad.contiguous(), *ctx.geometry)
    else:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            rows, offset, kernel = inputs
            y = gather_and_multiply(
                rows, offset, kernel, grad.new_zeros(grad.shape[1]), *ctx.geometry
            )
        of_inputs = torch.autograd.grad(y, inputs, grad)
    return (*of_inputs, grad.sum(dim=0), None, None, None, None)


fused_op.register_autograd(_backward, setup_context=_keep_inputs)
