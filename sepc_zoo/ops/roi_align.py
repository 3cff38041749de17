"""RoIAlign: features of regions on a grid of fixed size (He et al. 2017, section 3)."""

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from sepc_zoo.ops.devices import uses_standard_operators


def roi_align(
    x: Tensor, rows: Tensor, size: int, scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pool the regions of a map ``(N, C, H, W)`` to ``(R, C, size, size)``.

    On the CPU a pooled cell is a weighted sum of the map's pixels, which in channels-last memory
    takes a quarter of the time of torchvision's kernel.

    Args:
        rows: index of the image and box in pixels of the image ``(R, 5)``, in the type of ``x``.
        scale: cells per pixel.
        sampling_ratio: samples along a side of a pooled cell.
        aligned: whether the value of a cell is that of its centre, not of its corner.
    """
    if x.device.type != "cpu" or uses_standard_operators():
        return torchvision.ops.roi_align(x, rows, size, scale, sampling_ratio, aligned)
    (_, channels, height, width), count = x.shape, len(rows)
    boxes = rows[:, 1:] * scale - (0.5 if aligned else 0.0)
    sides = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    grid = (torch.arange(size * sampling_ratio) + 0.5).to(x) / (size * sampling_ratio)
    points = boxes[:, None, :2] + grid[:, None] * sides[:, None]  # R, size * ratio, (x, y)
    column, x_weight = _pixels(points[..., 0], width)
    row, y_weight = _pixels(points[..., 1], height)
    # R, size, pixels of a pooled cell along a side
    column, x_weight, row, y_weight = (
        t.reshape(count, size, 2 * sampling_ratio) for t in (column, x_weight, row, y_weight)
    )
    image = rows[:, 0].long()[:, None, None, None, None]
    index = (image * height + row[:, :, None, :, None]) * width + column[:, None, :, None, :]
    weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :] / sampling_ratio**2
    per_cell = (count * size**2, (2 * sampling_ratio) ** 2)
    pooled = F.embedding_bag(
        index.reshape(per_cell),
        x.permute(0, 2, 3, 1).reshape(-1, channels),
        mode="sum",
        per_sample_weights=weight.reshape(per_cell),
    )
    return pooled.view(count, size, size, channels).permute(0, 3, 1, 2).contiguous()


def _pixels(points: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels beside each point along an axis, and their weights, ``(..., 2)`` each.

    Points up to a pixel outside of the map are moved to its border, those beyond weigh nothing.
    """
    outside = (points < -1) | (points > length)
    points = points.clamp(0, length - 1)
    low = points.floor()
    fraction = points - low
    index = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1).long()
    weight = torch.stack([1 - fraction, fraction], dim=-1)
    return index, weight.masked_fill(outside[..., None], 0)
