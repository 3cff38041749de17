"""Deformable convolution of a pyramid, in the precisions that a model may run in.

Where no fused kernel is at hand, a tap of a cell is a weighted sum of the channels of four pixels,
which is what an embedding bag computes; all taps of all levels then go into one matrix product.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TAPS = 9  # of a 3x3 kernel


def deform_conv2d(
    maps: Sequence[Tensor],
    offsets: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
) -> list[Tensor]:
    """Deformable convolution (Dai et al. 2017) of each level, ``(N, C, H, W) -> (N, C', H', W')``.

    ``offsets (N, 2 * 9, H', W')`` hold (dy, dx) per tap of the 3x3 kernel, in pixels of the map;
    NaN gives NaN in its place. Computed in float32 (float64 stays float64); the results have the
    type that a convolution would give here, channels last.
    """
    if not maps:
        return []
    device = maps[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        out_dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            out = deform_conv2d(maps, offsets, weight, bias, stride, padding)
        return [y.to(out_dtype) for y in out]
    out_dtype, dtype = maps[0].dtype, torch.promote_types(maps[0].dtype, torch.float32)
    maps, offsets = ([tensor.to(dtype) for tensor in part] for part in (maps, offsets))
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if device == "cuda":
        out = [
            _with_torchvision(x, offset, weight, bias, stride, padding)
            for x, offset in zip(maps, offsets, strict=True)
        ]
    else:
        out = _with_embedding_bag(maps, offsets, weight, bias, stride, padding)
    return [y.to(out_dtype) for y in out]


def _with_torchvision(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    # The operator reads outside of its memory at an offset of NaN.
    no_place, offset = offset.isnan().any(dim=1, keepdim=True), offset.nan_to_num()
    y = torchvision.ops.deform_conv2d(x, offset, weight, bias, stride=stride, padding=padding)
    return y.masked_fill(no_place, torch.nan)


def _with_embedding_bag(
    maps: Sequence[Tensor],
    offsets: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
) -> list[Tensor]:
    rows = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in maps])  # pixels, C
    index, share, start = [], [], 0
    for x, offset in zip(maps, offsets, strict=True):
        pixels, parts = pixels_of_taps(offset, x.shape[-2:], stride, padding)
        index.append(pixels + start)
        share.append(parts)
        start += math.prod(x.shape) // x.shape[1]
    kernel = weight.permute(0, 2, 3, 1).flatten(1)  # C', taps * C
    arguments = (rows, torch.cat(index), torch.cat(share), kernel, bias)
    if torch.is_grad_enabled():  # the taps of all cells are nine times as large as the maps
        y = checkpoint(_gather_and_multiply, *arguments, use_reentrant=False)
    else:
        y = _gather_and_multiply(*arguments)
    shapes = [(len(offset), *offset.shape[-2:]) for offset in offsets]
    levels = y.split([math.prod(shape) for shape in shapes])
    return [
        level.unflatten(0, shape).permute(0, 3, 1, 2)
        for level, shape in zip(levels, shapes, strict=True)
    ]


def _gather_and_multiply(
    rows: Tensor, index: Tensor, share: Tensor, kernel: Tensor, bias: Tensor | None
) -> Tensor:
    taps = F.embedding_bag(index, rows, mode="sum", per_sample_weights=share)  # cells * taps, C
    return F.linear(taps.view(-1, kernel.shape[1]), kernel, bias)


def pixels_of_taps(
    offset: Tensor, size: Sequence[int], stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """The four pixels around each tap of a map of ``size``, and the share that each has in it.

    Both ``(N * H' * W' * 9, 4)``; pixels are counted over the whole batch. Those outside of the map
    have no share.
    """
    count, _, rows, columns = offset.shape
    height, width = size
    place = offset.view(count, TAPS, 2, rows, columns).permute(0, 3, 4, 1, 2)  # N, H', W', 9, 2
    tap = torch.arange(3, device=offset.device) - padding
    y = torch.arange(rows, device=offset.device)[:, None, None] * stride + tap.repeat_interleave(3)
    x = torch.arange(columns, device=offset.device)[:, None] * stride + tap.repeat(3)
    row, row_share = _neighbours(place[..., 0] + y, height)
    column, column_share = _neighbours(place[..., 1] + x, width)
    image = torch.arange(count, device=offset.device).view(-1, 1, 1, 1, 1, 1)
    pixels = (image * height + row[..., None]) * width + column[..., None, :]
    return pixels.view(-1, 4), (row_share[..., None] * column_share[..., None, :]).view(-1, 4)


def _neighbours(place: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels on either side of each place along an axis, and their shares ``(..., 2)``."""
    place = place.clamp(-1, length)
    before = place.detach().floor()
    after_share = place - before
    pixel = torch.stack([before, before + 1], dim=-1)
    share = torch.stack([1 - after_share, after_share], dim=-1)
    inside = (pixel >= 0) & (pixel < length)
    return pixel.long().clamp(0, length - 1), share.where(inside | share.isnan(), 0)
