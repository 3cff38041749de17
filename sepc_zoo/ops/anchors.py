"""Anchors: boxes laid on the cells of every level of a pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sepc_zoo.config import AnchorConfig
from sepc_zoo.ops.devices import to_device


def cell_anchors(config: AnchorConfig, stride: int) -> Tensor:
    """Anchors of the first cell ``(per_cell, 4)`` float64: ratios outside, sizes inside."""
    octaves = torch.arange(config.octaves, dtype=torch.float64) / config.octaves
    sides = config.base_scale * stride * 2**octaves
    sides = sides.floor() if config.whole_sizes else sides
    stretch = torch.tensor(config.ratios, dtype=torch.float64).sqrt()[:, None]
    size = torch.stack([sides / stretch, sides * stretch], dim=-1).view(-1, 2)  # width, height
    middle = stride if config.centre == "cell" else 0
    anchors = torch.cat([(middle - size) / 2, (middle + size) / 2], dim=1)
    return anchors.round() if config.rounded else anchors


def make_anchors(
    config: AnchorConfig,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """All anchors ``(A, 4)`` in pixels, of a pyramid with levels of ``sizes`` (h, w) in cells.

    A runs over levels, then rows, columns and the anchors of a cell; the grid starts at (0, 0).
    """
    levels = []
    batch = [side * strides[0] for side in sizes[0]]
    for (height, width), stride in zip(sizes, strides, strict=True):
        steps = (stride, stride)
        if config.stride == "measured":
            steps = (batch[0] // height, batch[1] // width)
        y = torch.arange(height, device=device, dtype=dtype) * steps[0]
        x = torch.arange(width, device=device, dtype=dtype) * steps[1]
        y, x = torch.meshgrid(y, x, indexing="ij")
        corner = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
        first = to_device(cell_anchors(config, stride), corner.device, corner.dtype)
        levels.append((corner + first).view(-1, 4))
    return torch.cat(levels)


def existing_anchors(
    config: AnchorConfig,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    pad_multiple: int,
) -> Tensor:
    """Whether each anchor lies inside its own image and the padding of this image, ``(N, A)``.

    Args:
        sizes: height and width of each level in cells.
        image_sizes: height and width of each image inside the batch, pixels.
        pad_multiple: an image alone is padded to multiples of this.
    """
    padded = [[-(-side // pad_multiple) * pad_multiple for side in size] for size in image_sizes]
    images = torch.tensor(padded)[:, :, None]  # N, 2, 1
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        row = torch.arange(height) * stride < images[:, 0]  # N, height
        column = torch.arange(width) * stride < images[:, 1]
        inside = row[:, :, None] & column[:, None, :]
        levels.append(inside.flatten(1).repeat_interleave(config.per_cell, dim=1))
    return torch.cat(levels, dim=1)
