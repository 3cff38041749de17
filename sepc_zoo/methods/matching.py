"""From boxes to indices: which anchors answer for which box; in chunks, so memory is bounded.

An anchor's match is the index of its box, ``NEGATIVE`` or ``IGNORE``.
"""

import torch
from torch import Tensor

from sepc_zoo.ops.boxes import anchor_chunks, box_area, box_iof, box_iou, shrink_boxes

NEGATIVE = -1
IGNORE = -2


def match_by_iou(boxes: Tensor, anchors: Tensor, positive: float, negative: float) -> Tensor:
    """RetinaNet's matching (section 4.1), ``(G, 4), (A, 4) -> (A,)``.

    An anchor goes to the box it overlaps most if their IoU is at least ``positive``, is negative
    below ``negative`` and ignored between. Every box keeps its best anchors whatever their IoU, all
    that tie, as long as they overlap it; of two boxes that claim one anchor so, the later gets it.
    """
    match = torch.full((len(anchors),), NEGATIVE, device=anchors.device)
    if len(boxes) == 0:
        return match
    ties = []
    for chunk in anchor_chunks(len(boxes), len(anchors)):
        iou = box_iou(boxes, anchors[chunk])  # G, a
        best, index = iou.max(dim=0)
        index = index.masked_fill(best < positive, IGNORE)
        match[chunk] = index.masked_fill(best < negative, NEGATIVE)
        top = iou.amax(dim=1, keepdim=True)
        box, anchor = ((iou == top) & (iou > 0)).nonzero(as_tuple=True)
        ties.append((box, anchor + chunk.start, iou[box, anchor]))
    box, anchor, iou = (torch.cat(parts) for parts in zip(*ties, strict=True))
    top = iou.new_zeros(len(boxes)).scatter_reduce(0, box, iou, "amax")
    kept = iou == top[box]
    forced = torch.full_like(match, NEGATIVE).scatter_reduce(0, anchor[kept], box[kept], "amax")
    return torch.where(forced >= 0, forced, match)


def match_by_centre(
    boxes: Tensor, anchors: Tensor, central: float = 0.2, min_cover: float = 0.01
) -> Tensor:
    """FSAF's matching (section 3.1), ``(G, 4), (A, 4) -> (A,)``.

    An anchor is positive where the central part of a box covers more than ``min_cover`` of it and
    its centre lies strictly inside the box, ignored where the centre does not. The smallest box
    wins, of equal ones the first.
    """
    match = torch.full((len(anchors),), NEGATIVE, device=anchors.device)
    if len(boxes) == 0:
        return match
    cores, area = shrink_boxes(boxes, central), box_area(boxes)[:, None]
    for chunk in anchor_chunks(len(boxes), len(anchors)):
        covered = box_iof(cores, anchors[chunk]) > min_cover  # G, a
        inside = covered & _centre_inside(boxes, anchors[chunk])
        smallest, index = torch.where(inside, area, torch.inf).min(dim=0)
        outside = torch.where(covered.any(dim=0), IGNORE, NEGATIVE)
        match[chunk] = torch.where(smallest < torch.inf, index, outside)
    return match


def _centre_inside(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Whether each centre lies strictly inside the pixels of each box ``(G, A)``."""
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(-1)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    return (x1 < x) & (x < x2 - 1) & (y1 < y) & (y < y2 - 1)


def inside_crowd(crowds: Tensor, anchors: Tensor) -> Tensor:
    """Whether more than half of each anchor lies in a crowd box, ``(C, 4), (A, 4) -> (A,)``."""
    inside = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    if len(crowds):
        for chunk in anchor_chunks(len(crowds), len(anchors)):
            inside[chunk] = (box_iof(crowds, anchors[chunk]) > 0.5).any(dim=0)
    return inside
