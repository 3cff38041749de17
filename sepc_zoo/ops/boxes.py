"""Continuous xyxy boxes in pixels, and overlaps of many boxes with very many anchors.

A table of overlaps ``(..., G, A)`` compares ``boxes (..., G, 4)`` with ``anchors (A, 4)`` that all
images share, or with ``(..., A, 4)``. Pass three preallocated ``out`` buffers to avoid allocations
in a loop, which cost more than the arithmetic; the first one becomes the table.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# Largest number of cells of a table: 16 M are 64 MB in float32. On the CPU a table fits the cache,
# unless its rows would be too short to be worth the calls.
TABLE_CELLS = 2**24
CACHED_CELLS, CACHED_ROW = 2**20, 128

Overlap = Callable[[Tensor, Tensor, "Buffers"], Tensor]
Buffers = Sequence[Tensor | None]
FRESH: Buffers = (None, None, None)


def intersection(boxes1: Tensor, boxes2: Tensor, out: Buffers = FRESH) -> Tensor:
    """Areas of overlap ``(..., G, A)``."""
    left1, top1, right1, bottom1 = boxes1[..., None].unbind(-2)  # ..., G, 1
    left2, top2, right2, bottom2 = boxes2[..., None, :, :].movedim(-1, 0).contiguous()  # ..., 1, A
    width = _overlap(left1, right1, left2, right2, out[0], out[1])
    return width.mul_(_overlap(top1, bottom1, top2, bottom2, out[2], out[1]))


def _overlap(
    low1: Tensor, high1: Tensor, low2: Tensor, high2: Tensor, out: Tensor | None, low: Tensor | None
) -> Tensor:
    high = torch.minimum(high1, high2, out=out)
    return high.sub_(torch.maximum(low1, low2, out=low)).clamp_(min=0)


def box_area(boxes: Tensor) -> Tensor:
    """Areas ``(..., 4) -> (...)``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_centre(boxes: Tensor) -> Tensor:
    """Centres (x, y), ``(..., 4) -> (..., 2)``."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_iou(boxes1: Tensor, boxes2: Tensor, out: Buffers = FRESH) -> Tensor:
    """Intersection over union ``(..., G, A)``; 0 for two boxes without area."""
    inter = intersection(boxes1, boxes2, out)
    areas = torch.add(box_area(boxes1)[..., None], box_area(boxes2)[..., None, :], out=out[1])
    return inter.div_(areas.sub_(inter).clamp_(min=torch.finfo(inter.dtype).tiny))


def paired_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of each box with its partner, ``(..., 4), (..., 4) -> (...)``."""
    inter = paired_intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - inter
    return inter / union.clamp(min=torch.finfo(inter.dtype).tiny)


def paired_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Area of overlap of each box with its partner, ``(..., 4), (..., 4) -> (...)``."""
    lower = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    upper = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    width, height = (upper - lower).clamp(min=0).unbind(-1)
    return width * height


def box_iof(boxes: Tensor, anchors: Tensor, out: Buffers = FRESH) -> Tensor:
    """Intersection over the anchor's area ``(..., G, A)``."""
    return intersection(boxes, anchors, out).div_(box_area(anchors)[..., None, :])


def anchor_chunks(
    num_boxes: int, num_anchors: int, device: torch.device | str = "cpu"
) -> Iterator[slice]:
    """Slices of the anchors, such that no table of boxes x anchors exceeds ``TABLE_CELLS``."""
    num_boxes = max(1, num_boxes)
    step = max(1, TABLE_CELLS // num_boxes)
    if torch.device(device).type == "cpu":
        step = min(step, max(CACHED_ROW, CACHED_CELLS // num_boxes))
    for start in range(0, num_anchors, step):
        yield slice(start, min(start + step, num_anchors))


def table_chunks(
    overlap: Overlap, boxes: Tensor, anchors: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The table of ``box_iou`` or ``box_iof``, by slices of the anchors.

    Yields:
        The slice, its table ``(..., G, a)`` and a buffer of the same shape. The caller may
        overwrite both; the next step does.
    """
    images = torch.broadcast_shapes(boxes.shape[:-2], anchors.shape[:-2])
    num_boxes = boxes.shape[-2]
    out = boxes.new_empty(3, 0)
    for chunk in anchor_chunks(math.prod(images) * num_boxes, anchors.shape[-2], boxes.device):
        shape = (*images, num_boxes, chunk.stop - chunk.start)
        if out.shape[1:] != shape:
            out = boxes.new_empty(3, *shape)
        yield chunk, overlap(boxes, anchors[..., chunk, :], out.unbind()), out[1]


def table_rows(overlap: Overlap, boxes: Tensor, anchors: Tensor) -> Iterator[Tensor]:
    """The table of ``boxes (G, 4)`` and all anchors ``(A, 4)``, by slices of the boxes.

    Yields:
        The rows ``(g, A)``. The caller may overwrite them; the next step does.
    """
    step = rows_at_once(len(anchors), boxes.device)
    out = boxes.new_empty(3, min(step, len(boxes)), len(anchors))
    for part in boxes.split(step):
        yield overlap(part, anchors, out[:, : len(part)].unbind())


def rows_at_once(row_length: int, device: torch.device) -> int:
    """Number of rows for which a part of a table stays within the limit; at least 1."""
    cells = min(TABLE_CELLS, CACHED_CELLS) if device.type == "cpu" else TABLE_CELLS
    return max(1, cells // max(1, row_length))


def clip_boxes(boxes: Tensor, sizes: Tensor, border: float = 0.0) -> Tensor:
    """Clip boxes ``(N, A, 4)`` to their images, whose heights and widths are ``sizes (N, 2)``.

    Args:
        border: part of the image that every box keeps, pixels: x1 <= w - border, x2 >= border. Code
            whose boxes include their last pixel clips with a border of 1.
    """
    limit = sizes.flip(-1).to(boxes)[:, None]  # N, 1, (w, h)
    lower = boxes[..., :2].clamp(min=0).minimum(limit - border)
    upper = boxes[..., 2:].clamp(min=border).minimum(limit)
    return torch.cat([lower, upper], dim=-1)


def shrink_boxes(boxes: Tensor, factor: float) -> Tensor:
    """The central part of each box ``(..., 4)``, its sides times ``factor``."""
    centre, half = box_centre(boxes), (boxes[..., 2:] - boxes[..., :2]) * (factor / 2)
    return torch.cat([centre - half, centre + half], dim=-1)
