# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Deformable convolution of a pyramid in Triton.

Bilinear samples feed the matrix product directly: there is no buffer of taps, and one launch for
all levels. Maps are rows of channels, level after level: the kernels read ``(pixels, C)`` and write
``(cells, C')``, where a cell is a pixel of the result. float32 is multiplied without tensor cores.
The kernels were compared with float64 in Triton's interpreter, and not yet run on a GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

TAPS = tl.constexpr(9)
MAX_LEVELS = 5
# Arguments that are not compiled in: else each size would compile a kernel.
NOT_CONSTANT = ["count", *(f"level{i}" for i in range(MAX_LEVELS))]


def convolve(
    rows: Tensor,
    offset: Tensor,
    kernel: Tensor,
    bias: Tensor,
    sizes: Sequence[int],
    count: int,
    stride: int,
    padding: int,
) -> Tensor:
    """Deformable convolution ``(pixels, C) -> (cells, C')``, summed in float32.

    Args:
        offset: ``(cells, 2 * 9)``, (dy, dx) per tap in pixels; NaN gives NaN.
        kernel: ``(9, C, C')``, of the rows' type, as is the bias ``(C',)``.
        sizes: for each level its height and width, and height and width of its result.
        count: number of images.
    """
    channels, out_channels = kernel.shape[1:]
    out = rows.new_empty(len(offset), out_channels)

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        blocks = triton.cdiv(len(offset), meta["BLOCK_M"])
        return blocks, triton.cdiv(out_channels, meta["BLOCK_N"])

    _forward[grid](
        *(rows, offset, kernel, bias, out),
        *(len(offset), channels, out_channels, *_levels(sizes, count)),
        **_constants(len(offset), stride, padding),
    )
    return out


def gradients(
    rows: Tensor,
    offset: Tensor,
    kernel: Tensor,
    grad: Tensor,
    sizes: Sequence[int],
    count: int,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, offset and kernel from the gradient of the result ``(cells, C')``.

    They are summed by atomic additions, whose order is not deterministic.
    """
    cells, (channels, out_channels) = len(offset), kernel.shape[1:]
    of_rows = torch.zeros_like(rows, dtype=torch.float32)
    of_offset = torch.zeros_like(offset, dtype=torch.float32)
    of_kernel = torch.zeros_like(kernel, dtype=torch.float32)
    dimensions = cells, channels, out_channels, *_levels(sizes, count)
    constants = _constants(cells, stride, padding)

    def tap_grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(cells, meta["BLOCK_M"]), 9

    def kernel_grid(meta: dict[str, int]) -> tuple[int, int, int]:
        blocks = triton.cdiv(channels, meta["BLOCK_C"]) * triton.cdiv(out_channels, meta["BLOCK_N"])
        return 9, blocks, triton.cdiv(cells, meta["CELLS"])

    _input_gradient[tap_grid](
        *(rows, offset, kernel, grad, of_rows, of_offset), *dimensions, **constants
    )
    _kernel_gradient[kernel_grid](*(rows, offset, grad, of_kernel), *dimensions, **constants)
    return of_rows.to(rows.dtype), of_offset.to(offset.dtype), of_kernel.to(kernel.dtype)


def _levels(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """The number of images, and the four sides of each level packed into 64 bits.

    As numbers they are arguments of the launch. A tensor would need a blocking copy to the device,
    which a CUDA graph cannot hold.
    """
    levels = [0] * MAX_LEVELS
    for i in range(len(sizes) // 4):
        height, width, out_height, out_width = sizes[4 * i : 4 * i + 4]
        levels[i] = height << 48 | width << 32 | out_height << 16 | out_width
    return (count, *levels)


def _constants(cells: int, stride: int, padding: int) -> dict[str, int]:
    return {"STRIDE": stride, "PADDING": padding, "MAGNITUDE": cells.bit_length() // 2}


def _tuned(*configs: tuple[dict[str, int], int, int], zeroed: Sequence[str] = ()) -> Any:
    """Let Triton choose blocks, warps and stages by timing; its interpreter takes the first."""
    some = [triton.Config(blocks, num_warps=w, num_stages=s) for blocks, w, s in configs]
    some = some[:1] if knobs.runtime.interpret else some
    key = ["channels", "out_channels", "MAGNITUDE"]
    return triton.autotune(some, key=key, reset_to_zero=list(zeroed))


@triton.jit
def _cells(m, count, levels, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    """The first pixel of each cell's map, the size of the map, and the first tap of the cell."""
    cell, pixel = m, m * 0
    height, width, rows, columns = m * 0 + 1, m * 0 + 1, m * 0 + 1, m * 0 + 1
    first_cell, first_pixel = count * 0, count * 0
    for i in tl.static_range(len(levels)):
        sides = levels[i].to(tl.int64)
        its_height = (sides >> 48).to(tl.int32)
        its_width = ((sides >> 32) & 0xFFFF).to(tl.int32)
        its_rows = ((sides >> 16) & 0xFFFF).to(tl.int32)
        its_columns = (sides & 0xFFFF).to(tl.int32)
        here = (m >= first_cell) & (sides > 0)
        cell = tl.where(here, m - first_cell, cell)
        pixel = tl.where(here, first_pixel, pixel)
        height = tl.where(here, its_height, height)
        width = tl.where(here, its_width, width)
        rows = tl.where(here, its_rows, rows)
        columns = tl.where(here, its_columns, columns)
        first_cell += count * its_rows * its_columns
        first_pixel += count * its_height * its_width
    image, cell = cell // (rows * columns), cell % (rows * columns)
    y = (cell // columns) * STRIDE - PADDING
    x = (cell % columns) * STRIDE - PADDING
    return pixel + image * height * width, height, width, y, x


@triton.jit
def _neighbours(place, length):
    """The pixels beside a position on an axis, their weights, and whether these have gradients."""
    is_nan = place != place
    inside = tl.minimum(tl.maximum(place, -1.0), length.to(tl.float32))
    inside = tl.where(is_nan, 0.0, inside)
    before = tl.floor(inside)
    share = tl.where(is_nan, place, inside - before)
    low = before.to(tl.int32)
    has_low, has_high = (low >= 0) & (low < length), low + 1 < length
    low_share = tl.where(has_low | is_nan, 1 - share, 0.0)
    high_share = tl.where(has_high | is_nan, share, 0.0)
    moves = (place >= -1) & (place < length)  # farther outside a tap is 0, and stays 0
    last = length - 1
    low_pixel = tl.minimum(tl.maximum(low, 0), last)
    high_pixel = tl.minimum(low + 1, last)
    return low_pixel, high_pixel, low_share, high_share, has_low & moves, has_high & moves


@triton.jit
def _tap(offset_ptr, m, inside, tap, height, width, y, x):
    """The neighbours of a tap of each cell, for rows and for columns."""
    dy = tl.load(offset_ptr + m * (2 * TAPS) + 2 * tap, mask=inside, other=0).to(tl.float32)
    dx = tl.load(offset_ptr + m * (2 * TAPS) + 2 * tap + 1, mask=inside, other=0).to(tl.float32)
    rows = _neighbours((y + tap // 3).to(tl.float32) + dy, height)
    columns = _neighbours((x + tap % 3).to(tl.float32) + dx, width)
    return rows, columns


@triton.jit
def _gather(rows_ptr, pixel, channel, channels, inside):
    """Channels of pixels, ``(cells, channels)`` in float32."""
    mask = inside[:, None] & (channel < channels)[None, :]
    places = rows_ptr + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    return tl.load(places, mask=mask, other=0).to(tl.float32)


@triton.jit
def _sample(rows_ptr, start, width, rows, columns, channel, channels, inside):
    """Bilinear samples ``(cells, channels)`` in float32."""
    value = tl.zeros((start.shape[0], channel.shape[0]), dtype=tl.float32)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            pixel = start + rows[i] * width + columns[j]
            share = rows[2 + i] * columns[2 + j]
            read = inside & (share != 0)  # pixels of weight 0 may hold inf
            value += share[:, None] * _gather(rows_ptr, pixel, channel, channels, read)
    return value


@_tuned(
    ({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_C": 32}, 4, 2),
    ({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_C": 32}, 8, 3),
    ({"BLOCK_M": 64, "BLOCK_N": 256, "BLOCK_C": 32}, 8, 3),
    ({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_C": 64}, 8, 3),
)
@triton.jit(do_not_specialize=NOT_CONSTANT)
def _forward(
    rows_ptr,
    offset_ptr,
    kernel_ptr,
    bias_ptr,
    out_ptr,
    cells,
    channels,
    out_channels,
    count,
    level0,
    level1,
    level2,
    level3,
    level4,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = m < cells
    levels = level0, level1, level2, level3, level4
    start, height, width, y, x = _cells(m, count, levels, STRIDE, PADDING)
    bias = tl.load(bias_ptr + n, mask=n < out_channels, other=0).to(tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32) + bias[None, :]
    for tap in range(TAPS):
        rows, columns = _tap(offset_ptr, m, inside, tap, height, width, y, x)
        for first in range(0, channels, BLOCK_C):
            channel = first + tl.arange(0, BLOCK_C)
            value = _sample(rows_ptr, start, width, rows, columns, channel, channels, inside)
            places = (tap * channels + channel)[:, None] * out_channels + n[None, :]
            mask = (channel < channels)[:, None] & (n < out_channels)[None, :]
            weight = tl.load(kernel_ptr + places, mask=mask, other=0)
            total = tl.dot(value.to(weight.dtype), weight, total, input_precision="ieee")
    places = out_ptr + m.to(tl.int64)[:, None] * out_channels + n[None, :]
    tl.store(places, total, mask=inside[:, None] & (n < out_channels)[None, :])


@_tuned(
    ({"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_C": 64}, 4, 2),
    ({"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_C": 64}, 8, 3),
    ({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_C": 128}, 8, 3),
    zeroed=("of_rows_ptr",),
)
@triton.jit(do_not_specialize=NOT_CONSTANT)
def _input_gradient(
    rows_ptr,
    offset_ptr,
    kernel_ptr,
    grad_ptr,
    of_rows_ptr,
    of_offset_ptr,
    cells,
    channels,
    out_channels,
    count,
    level0,
    level1,
    level2,
    level3,
    level4,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of the pixels around a tap, and of its offset; one program owns the tap."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tap = tl.program_id(1)
    inside = m < cells
    levels = level0, level1, level2, level3, level4
    start, height, width, y, x = _cells(m, count, levels, STRIDE, PADDING)
    rows, columns = _tap(offset_ptr, m, inside, tap, height, width, y, x)
    of_y = tl.zeros((BLOCK_M,), dtype=tl.float32)
    of_x = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        of_sample = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
        for first_out in range(0, out_channels, BLOCK_N):
            n = first_out + tl.arange(0, BLOCK_N)
            places = grad_ptr + m.to(tl.int64)[:, None] * out_channels + n[None, :]
            grad = tl.load(places, mask=inside[:, None] & (n < out_channels)[None, :], other=0)
            places = (tap * channels + channel)[None, :] * out_channels + n[:, None]
            mask = (n < out_channels)[:, None] & (channel < channels)[None, :]
            weight = tl.load(kernel_ptr + places, mask=mask, other=0)
            of_sample = tl.dot(grad, weight, of_sample, input_precision="ieee")
        mask = inside[:, None] & (channel < channels)[None, :]
        for i in tl.static_range(2):
            for j in tl.static_range(2):
                pixel = start + rows[i] * width + columns[j]
                value = _gather(rows_ptr, pixel, channel, channels, inside)
                change = tl.sum(of_sample * value, axis=1)
                of_y += tl.where(rows[4 + i], (2 * i - 1) * columns[2 + j] * change, 0.0)
                of_x += tl.where(columns[4 + j], (2 * j - 1) * rows[2 + i] * change, 0.0)
                places = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
                share = (rows[2 + i] * columns[2 + j])[:, None]
                part, has_share = share * of_sample, mask & (share != 0)
                tl.atomic_add(of_rows_ptr + places, part, mask=has_share, sem="relaxed")
    tl.store(of_offset_ptr + m * (2 * TAPS) + 2 * tap, of_y, mask=inside)
    tl.store(of_offset_ptr + m * (2 * TAPS) + 2 * tap + 1, of_x, mask=inside)


@_tuned(
    ({"BLOCK_M": 32, "BLOCK_N": 128, "BLOCK_C": 64, "CELLS": 1024}, 4, 2),
    ({"BLOCK_M": 32, "BLOCK_N": 128, "BLOCK_C": 128, "CELLS": 4096}, 8, 3),
    ({"BLOCK_M": 64, "BLOCK_N": 256, "BLOCK_C": 64, "CELLS": 4096}, 8, 3),
    zeroed=("of_kernel_ptr",),
)
@triton.jit(do_not_specialize=NOT_CONSTANT)
def _kernel_gradient(
    rows_ptr,
    offset_ptr,
    grad_ptr,
    of_kernel_ptr,
    cells,
    channels,
    out_channels,
    count,
    level0,
    level1,
    level2,
    level3,
    level4,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CELLS: tl.constexpr,
):
    """Samples of a tap times the gradient, summed over a part of the cells."""
    tap = tl.program_id(0)
    blocks = tl.cdiv(out_channels, BLOCK_N)
    channel = (tl.program_id(1) // blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = (tl.program_id(1) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_C, BLOCK_N), dtype=tl.float32)
    for first in range(0, CELLS, BLOCK_M):
        m = tl.program_id(2) * CELLS + first + tl.arange(0, BLOCK_M)
        inside = m < cells
        levels = level0, level1, level2, level3, level4
        start, height, width, y, x = _cells(m, count, levels, STRIDE, PADDING)
        rows, columns = _tap(offset_ptr, m, inside, tap, height, width, y, x)
        value = _sample(rows_ptr, start, width, rows, columns, channel, channels, inside)
        places = grad_ptr + m.to(tl.int64)[:, None] * out_channels + n[None, :]
        grad = tl.load(places, mask=inside[:, None] & (n < out_channels)[None, :], other=0)
        value = tl.trans(value.to(grad.dtype))
        total = tl.dot(value, grad, total, input_precision="ieee")
    places = (tap * channels + channel)[:, None] * out_channels + n[None, :]
    mask = (channel < channels)[:, None] & (n < out_channels)[None, :]
    tl.atomic_add(of_kernel_ptr + places, total, mask=mask, sem="relaxed")
