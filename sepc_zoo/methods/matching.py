"""Matching of anchors to boxes, in chunks of bounded memory.

An anchor's match is the index of its box, ``NEGATIVE`` or ``IGNORE``. Boxes are those of one image
``(G, 4)`` or of several ``(N, G, 4)``, which share their anchors. Boxes without area, with which
images are padded, match nothing.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sepc_zoo.ops.boxes import (
    box_area,
    box_centre,
    box_iof,
    box_iou,
    shrink_boxes,
    table_chunks,
)
from sepc_zoo.outputs import Anchors, Targets

NEGATIVE = -1
IGNORE = -2
LowQuality: TypeAlias = Literal["claimed", "own", "none"]


def match_by_iou(
    boxes: Tensor,
    anchors: Tensor,
    positive: float,
    negative: float,
    exists: Tensor | None = None,
    low_quality: LowQuality = "claimed",
) -> Tensor:
    """RetinaNet's matching (section 4.1), ``(..., G, 4), (A, 4) -> (..., A)``.

    An anchor goes to the box it overlaps most if their IoU is at least ``positive``, is negative
    below ``negative`` and ignored between.

    Args:
        anchors: of all images, or of each ``(..., A, 4)``.
        exists: ``(..., A)``, False where an anchor matches nothing.
        low_quality: how to match the anchors of highest IoU with a box, including ties, whatever
            their IoU. ``"claimed"``: to this box, if they overlap it; of two boxes that claim one
            anchor, to the later. ``"own"``: to the box that the anchor itself overlaps most, as in
            torchvision, where a box that no anchor overlaps claims all. ``"none"``: as all others.
    """
    match = _no_match(boxes, anchors)
    if boxes.shape[-2] == 0:
        return match
    top = boxes.new_zeros(boxes.shape[:-1])  # ..., G
    if low_quality != "none":
        for chunk, iou, _ in table_chunks(box_iou, boxes, anchors):
            _clear_missing(iou, exists, chunk)
            top = torch.maximum(top, iou.amax(dim=-1))
    never = box_area(boxes) <= 0 if low_quality == "own" else top == 0
    top = top.masked_fill(never, torch.inf)[..., None]
    number = torch.arange(1, boxes.shape[-2] + 1, device=boxes.device).to(boxes)[:, None]  # G, 1
    for chunk, iou, _ in table_chunks(box_iou, boxes, anchors):
        _clear_missing(iou, exists, chunk)
        best, own = iou.max(dim=-2)  # ..., a
        index = own.masked_fill(best < positive, IGNORE).masked_fill(best < negative, NEGATIVE)
        claimed = iou.eq_(top).mul_(number).amax(dim=-2).long() - 1
        low = own if low_quality == "own" else claimed
        match[..., chunk] = torch.where(claimed >= 0, low, index)
    return match


def match_by_centre(
    boxes: Tensor,
    anchors: Tensor,
    central: float = 0.2,
    min_cover: float = 0.01,
    exists: Tensor | None = None,
) -> Tensor:
    """FSAF's matching (section 3.1), ``(..., G, 4), (A, 4) -> (..., A)``.

    An anchor is positive where the central part of a box covers more than ``min_cover`` of it and
    its centre lies strictly inside the pixels of the box, ignored where the centre does not. The
    smallest box wins, of equal ones the first.
    """
    match = _no_match(boxes, anchors)
    num_boxes = boxes.shape[-2]
    if num_boxes == 0:
        return match
    order = box_area(boxes).argsort(dim=-1, stable=True)  # ..., G
    boxes = boxes.gather(-2, order[..., None].expand_as(boxes))
    left, top, right, bottom = boxes[..., None].unbind(-2)  # ..., G, 1
    x, y = box_centre(anchors).T.contiguous()  # A
    number = torch.arange(num_boxes, 0, -1, device=boxes.device).to(boxes)[:, None]  # G, 1
    for chunk, cover, holds in table_chunks(box_iof, shrink_boxes(boxes, central), anchors):
        hit = cover.gt_(min_cover)  # 1 or 0
        _clear_missing(hit, exists, chunk)
        outside = hit.amax(dim=-2)
        for low, high, centre in ((left, right - 1, x[chunk]), (top, bottom - 1, y[chunk])):
            hit.mul_(torch.lt(low, centre, out=holds)).mul_(torch.gt(high, centre, out=holds))
        # The rank of the smallest box that holds the anchor.
        place = num_boxes - hit.mul_(number).amax(dim=-2).long()
        box = order.gather(-1, place.clamp(max=num_boxes - 1))
        missed = torch.where(outside > 0, IGNORE, NEGATIVE)
        match[..., chunk] = torch.where(place < num_boxes, box, missed)
    return match


def inside_crowd(crowds: Tensor, anchors: Tensor) -> Tensor:
    """Whether over half of each anchor lies in a crowd box, ``(..., C, 4), (A, 4) -> (..., A)``."""
    inside = torch.zeros_like(_no_match(crowds, anchors), dtype=torch.bool)
    if crowds.shape[-2]:
        for chunk, cover, _ in table_chunks(box_iof, crowds, anchors):
            inside[..., chunk] = cover.amax(dim=-2) > 0.5
    return inside


def ignore_negatives(match: Tensor, anchors: Anchors, targets: Targets) -> Tensor:
    """``match (N, A)`` with IGNORE for negatives in crowds, and for anchors that do not exist."""
    ignored = inside_crowd(targets.crowds, anchors.boxes)
    if anchors.exists is not None:
        ignored = ignored | ~anchors.exists
    return match.masked_fill((match < 0) & ignored, IGNORE)


def count_positives(match: Tensor) -> Tensor:
    """Number of positive anchors ``()``; an image counts for at least one."""
    return (match >= 0).sum(dim=1).clamp(min=1).sum()


def _clear_missing(table: Tensor, exists: Tensor | None, chunk: slice) -> None:
    if exists is not None:
        table.mul_(exists[..., None, chunk])


def _no_match(boxes: Tensor, anchors: Tensor) -> Tensor:
    images = torch.broadcast_shapes(boxes.shape[:-2], anchors.shape[:-2])
    return torch.full((*images, anchors.shape[-2]), NEGATIVE, device=anchors.device)
