"""Continuous xyxy boxes in pixels, and overlaps of many boxes with very many anchors."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Cells of a boxes x anchors table that are held at once: 16 M are 64 MB in float32.
TABLE_CELLS = 2**24


def intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Areas of overlap ``(G, 4), (A, 4) -> (G, A)``."""
    width = _overlap(boxes1[:, None, 0], boxes1[:, None, 2], boxes2[:, 0], boxes2[:, 2])
    height = _overlap(boxes1[:, None, 1], boxes1[:, None, 3], boxes2[:, 1], boxes2[:, 3])
    return width.mul_(height)


def _overlap(low1: Tensor, high1: Tensor, low2: Tensor, high2: Tensor) -> Tensor:
    return torch.minimum(high1, high2).sub_(torch.maximum(low1, low2)).clamp_(min=0)


def box_area(boxes: Tensor) -> Tensor:
    """Areas ``(..., 4) -> (...)``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union ``(G, 4), (A, 4) -> (G, A)``; 0 for two boxes without area."""
    inter = intersection(boxes1, boxes2)
    union = box_area(boxes1)[:, None] + box_area(boxes2) - inter
    return inter.div_(union.clamp_(min=torch.finfo(inter.dtype).tiny))


def box_iof(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Part of each anchor that a box covers ``(G, 4), (A, 4) -> (G, A)``."""
    return intersection(boxes, anchors).div_(box_area(anchors))


def anchor_chunks(num_boxes: int, num_anchors: int) -> Iterator[slice]:
    """Slices over the anchors, such that no table of boxes x anchors outgrows ``TABLE_CELLS``."""
    step = max(1, TABLE_CELLS // max(1, num_boxes))
    for start in range(0, num_anchors, step):
        yield slice(start, min(start + step, num_anchors))


def clip_boxes(boxes: Tensor, sizes: Tensor, border: float = 0.0) -> Tensor:
    """Boxes ``(N, A, 4)`` cut at the borders of their images, whose (h, w) are ``sizes (N, 2)``.

    ``border`` pixels of the image remain under every box: x1 is at most w - border, and x2 at
    least border. Code that counts the last pixel into a box clips with a border of 1.
    """
    limit = sizes.flip(-1).to(boxes)[:, None]  # N, 1, (w, h)
    lower = boxes[..., :2].clamp(min=0).minimum(limit - border)
    upper = boxes[..., 2:].clamp(min=border).minimum(limit)
    return torch.cat([lower, upper], dim=-1)


def shrink_boxes(boxes: Tensor, factor: float) -> Tensor:
    """The central part of each box ``(G, 4)``, its sides times ``factor``."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)
    return torch.cat([centre - half, centre + half], dim=1)
