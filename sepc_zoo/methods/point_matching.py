"""Matching by the centres of anchors: ATSS, FCOS, and FSAF with pairs that are ignored.

As in ``matching``, a match is the index of a box or ``NEGATIVE``, boxes are ``(..., G, 4)`` of one
or several images, and boxes without area, with which images are padded, match nothing.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from sepc_zoo.methods.matching import NEGATIVE
from sepc_zoo.ops.boxes import (
    anchor_chunks,
    box_area,
    box_centre,
    box_iof,
    paired_iou,
    rows_at_once,
    shrink_boxes,
    table_chunks,
)
from sepc_zoo.outputs import Anchors, Targets

MIN_INSIDE = 0.01  # pixels between the centre of a positive anchor of ATSS and the box around it


def match_atss(
    boxes: Tensor,
    anchors: Tensor,
    lengths: Sequence[int],
    exists: Tensor | None = None,
    candidates: int = 9,
) -> Tensor:
    """Adaptive training sample selection (ATSS, algorithm 1), ``(..., G, 4), (A, 4) -> (..., A)``.

    The candidates of a box are the nearest anchors of each level. Positive are those whose IoU with
    the box reaches the mean plus the standard deviation of the candidates' IoUs, and whose centres
    lie inside the box. An anchor that several boxes claim goes to the one of highest IoU.

    Args:
        lengths: number of anchors of each level; their sum is A.
        exists: ``(..., A)``, False where an anchor cannot be a candidate.
        candidates: number of candidates on each level; all anchors of a smaller level.
    """
    match = torch.full((*boxes.shape[:-2], len(anchors)), NEGATIVE, device=anchors.device)
    if boxes.shape[-2] == 0:
        return match
    anchor, valid = _nearest(box_centre(boxes), box_centre(anchors), lengths, exists, candidates)
    near = anchors[anchor]  # ..., G, C, 4
    iou = paired_iou(boxes[..., None, :], near).masked_fill(~valid, 0)  # ..., G, C
    count = valid.sum(dim=-1, keepdim=True)
    mean = iou.sum(dim=-1, keepdim=True) / count.clamp(min=1)
    deviation = (iou - mean).masked_fill(~valid, 0)
    spread = (deviation.square().sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    positive = valid & (iou >= mean + spread)
    centre, box = box_centre(near), boxes[..., None, :]
    positive &= (centre - box[..., :2]).amin(dim=-1) > MIN_INSIDE
    positive &= (box[..., 2:] - centre).amin(dim=-1) > MIN_INSIDE

    # Of the pairs (box, anchor), the one of highest IoU gets the anchor; of equal ones the first.
    anchor = anchor.masked_fill(~positive, len(anchors)).flatten(-2)  # ..., G * C
    iou = iou.flatten(-2)
    best = iou.new_full((*match.shape[:-1], len(anchors) + 1), -1)
    best.scatter_reduce_(-1, anchor, iou, "amax")
    num_boxes, num_candidates = positive.shape[-2:]
    box = torch.arange(num_boxes, device=boxes.device).repeat_interleave(num_candidates)
    box = box.expand_as(anchor).masked_fill(iou < best.gather(-1, anchor), num_boxes)
    first = torch.full_like(best, num_boxes, dtype=torch.long)
    first = first.scatter_reduce_(-1, anchor, box, "amin")[..., :-1]
    return first.masked_fill(first == num_boxes, NEGATIVE)


def _nearest(
    boxes: Tensor, anchors: Tensor, lengths: Sequence[int], exists: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """Find the anchors of each level nearest to each box, from centres ``(..., G, 2), (A, 2)``.

    Returns:
        Indices of anchors ``(..., G, C)``, and whether each exists.
    """
    indices, start = [], 0
    x, y = anchors.T.contiguous()
    for length in lengths:
        level = slice(start, start + length)
        missing = None if exists is None else ~exists[..., None, level]  # ..., 1, a
        nearest = []
        step = rows_at_once(boxes[..., 0, 0].numel() * length, boxes.device)
        for part in boxes.split(step, dim=-2):
            distance = (part[..., :1] - x[level]).square()  # ..., g, a
            distance += (part[..., 1:] - y[level]).square()
            if missing is not None:
                distance.masked_fill_(missing, torch.inf)
            top = distance.topk(min(count, length), dim=-1, largest=False)
            nearest.append(top.indices)
        indices.append(torch.cat(nearest, dim=-2) + start)
        start += length
    index = torch.cat(indices, dim=-1)
    if exists is None:
        return index, torch.ones_like(index, dtype=torch.bool)
    return index, exists.gather(-1, index.flatten(-2)).view_as(index)


def match_points(
    boxes: Tensor,
    anchors: Tensor,
    lengths: Sequence[int],
    *,
    reach: tuple[float, float] = (4.0, 8.0),
    radius: float | None = None,
    inclusive: bool = True,
    coarse_areas: bool = False,
) -> Tensor:
    """FCOS's matching (sections 3.1 and 3.2), ``(..., G, 4), (A, 4) -> (..., A)``.

    A point, the centre of an anchor, is positive where it lies strictly inside a box whose farthest
    side is within ``reach``. The smallest box wins, of equal ones the first.

    Args:
        lengths: number of anchors of each level; their sum is A.
        reach: smallest and largest distance, in sides of the anchor. The first level starts at 0,
            the last has no end.
        radius: sides of the anchor within which the centre of the box must lie, if any.
        inclusive: whether a distance at an end of ``reach`` is within it.
        coarse_areas: compare areas as ``1e8 - area``, as torchvision does. In float32 the first of
            two boxes wins if their areas differ by less than about 8 square pixels.
    """
    match = torch.full((*boxes.shape[:-2], len(anchors)), NEGATIVE, device=anchors.device)
    num_boxes = boxes.shape[-2]
    if num_boxes == 0:
        return match
    area = box_area(boxes)
    order = (area - 1e8 if coarse_areas else area).argsort(dim=-1, stable=True)  # ..., G
    boxes = boxes.gather(-2, order[..., None].expand_as(boxes))
    x1, y1, x2, y2 = boxes[..., None].unbind(-2)  # ..., G, 1
    x, y = box_centre(anchors).T.contiguous()  # A
    side = anchors[:, 2] - anchors[:, 0]
    low, high = side * reach[0], side * reach[1]
    low[: lengths[0]], high[len(high) - lengths[-1] :] = 0, torch.inf
    rank = torch.arange(num_boxes, device=boxes.device)[:, None]  # G, 1
    for chunk in anchor_chunks(match[..., :1].numel() * num_boxes, len(anchors), boxes.device):
        sides = (x[chunk] - x1, y[chunk] - y1, x2 - x[chunk], y2 - y[chunk])  # ..., G, a
        hit, farthest = reduce(torch.minimum, sides) > 0, reduce(torch.maximum, sides)
        if inclusive:
            hit &= (farthest >= low[chunk]) & (farthest <= high[chunk])
        else:
            hit &= (farthest > low[chunk]) & (farthest < high[chunk])
        if radius is not None:
            shift_x, shift_y = (x[chunk] - (x1 + x2) / 2).abs(), (y[chunk] - (y1 + y2) / 2).abs()
            hit &= torch.maximum(shift_x, shift_y) < radius * side[chunk]
        first = rank.where(hit, num_boxes).amin(dim=-2)  # ..., a
        box = order.gather(-1, first.clamp(max=num_boxes - 1))
        match[..., chunk] = box.masked_fill(first == num_boxes, NEGATIVE)
    return match


def match_by_centre_pairs(
    targets: Targets,
    anchors: Anchors,
    num_classes: int,
    central: float = 0.2,
    min_cover: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """FSAF's matching in openmmlab's version 2, which ignores classes of a cell, not cells.

    As in ``match_by_centre``, a cell is positive where the central part of a box covers more than
    ``min_cover`` of it and its centre lies strictly inside the box; the smallest box wins. The
    classes of the other boxes whose central part covers the cell are ignored there. If one of them
    is the class of the winner, the cell is not positive.

    Returns:
        The match ``(N, A)``, and the ignored places in flattened logits ``(N, A, K)``, sorted.
    """
    boxes, num_anchors = targets.boxes, len(anchors.boxes)
    num_images, num_boxes = targets.labels.shape
    pairs = []
    for chunk, cover, _ in table_chunks(box_iof, shrink_boxes(boxes, central), anchors.boxes):
        covered = cover > min_cover
        if anchors.exists is not None:
            covered &= anchors.exists[:, None, chunk]
        image, box, anchor = covered.nonzero(as_tuple=True)  # waits for a GPU
        pairs.append(torch.stack([image, box, anchor + chunk.start]))
    image, box, anchor = torch.cat(pairs, dim=1)
    centre, found = box_centre(anchors.boxes[anchor]), boxes[image, box]
    label = targets.labels[image, box]
    inside = ((centre > found[:, :2]) & (centre < found[:, 2:])).all(dim=1)

    rank = box_area(boxes).argsort(dim=-1, stable=True).argsort(dim=-1)[image, box]
    cell = image * num_anchors + anchor
    best = torch.full((num_images * num_anchors,), num_boxes, device=boxes.device)
    best.scatter_reduce_(0, cell[inside], rank[inside], "amin")
    wins = inside & (rank == best[cell])
    match = torch.full_like(best, NEGATIVE)
    match[cell[wins]] = box[wins]
    ignored = (cell * num_classes + label)[~wins].unique()
    won = (cell * num_classes + label)[wins]
    match[won[torch.isin(won, ignored)] // num_classes] = NEGATIVE
    return match.view(num_images, -1), ignored
