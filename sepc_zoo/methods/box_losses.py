"""Losses of predicted boxes, one value for each of P positive anchors."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.ops.boxes import box_area, box_centre, paired_intersection, paired_iou

OverlapLoss = Literal["iou", "giou", "diou", "ciou"]


def overlap_loss(kind: OverlapLoss, boxes: Tensor, targets: Tensor, eps: float = 0.0) -> Tensor:
    """Compute the loss of this kind, ``(P, 4), (P, 4) -> (P,)``; only ``giou_loss`` has an eps."""
    if kind == "giou":
        return giou_loss(boxes, targets, eps)
    return {"iou": iou_loss, "diou": diou_loss, "ciou": ciou_loss}[kind](boxes, targets)


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """``-log IoU``, ``(P, 4), (P, 4) -> (P,)`` (UnitBox, eq. 3)."""
    return -paired_iou(boxes, targets).clamp(min=1e-6).log()


def giou_loss(boxes: Tensor, targets: Tensor, eps: float = 0.0) -> Tensor:
    """``1 - generalized IoU``, ``(P, 4), (P, 4) -> (P,)`` (Rezatofighi et al. 2019, algorithm 1).

    ``eps`` square pixels are added to both divisors.
    """
    tiny = torch.finfo(boxes.dtype).tiny
    inter = paired_intersection(boxes, targets)
    union = box_area(boxes) + box_area(targets) - inter
    around = box_area(_around(boxes, targets))
    iou = inter / (union + eps).clamp(min=tiny)
    return 1 - iou + (around - union) / (around + eps).clamp(min=tiny)


def diou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """``1 - IoU`` plus the distance of the centres, ``(P, 4), (P, 4) -> (P,)``.

    The distance is squared and divided by the squared diagonal of the box around both (Zheng et al.
    2020, eq. 7).
    """
    shift = (boxes[..., :2] + boxes[..., 2:] - targets[..., :2] - targets[..., 2:]) / 2
    around = _around(boxes, targets)
    diagonal = (around[..., 2:] - around[..., :2]).square().sum(dim=-1)
    distance = shift.square().sum(dim=-1) / diagonal.clamp(min=torch.finfo(boxes.dtype).tiny)
    return 1 - paired_iou(boxes, targets) + distance


def ciou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """``diou_loss`` plus the difference of the aspects, ``(P, 4), (P, 4) -> (P,)``.

    Zheng et al. 2020, eq. 10. For the aspect a side counts as at least one pixel: the gradient of
    smaller sides would explode.
    """
    aspect = (2 / math.pi * (_angle(boxes) - _angle(targets))).square()
    with torch.no_grad():
        total = 1 - paired_iou(boxes, targets) + aspect
        weight = aspect / total.clamp(min=torch.finfo(boxes.dtype).tiny)
    return diou_loss(boxes, targets) + weight * aspect


def _angle(boxes: Tensor) -> Tensor:
    """The angle whose tangent is width over height, ``(..., 4) -> (...)``."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).unbind(-1)
    return (width / height).atan()


def _around(boxes: Tensor, targets: Tensor) -> Tensor:
    """The smallest box around each pair, ``(P, 4), (P, 4) -> (P, 4)``."""
    lower = torch.minimum(boxes[..., :2], targets[..., :2])
    upper = torch.maximum(boxes[..., 2:], targets[..., 2:])
    return torch.cat([lower, upper], dim=-1)


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the two bins around each target (Generalized Focal Loss, eq. 6).

    Args:
        logits: ``(..., bins)``.
        targets: ``(...)``, in bins, from 0 to below bins - 1.

    Returns:
        ``(...)``: the bins are weighted by their nearness to the target.
    """
    lower = targets.floor()
    weight = (targets - lower)[..., None]
    log_prob = F.log_softmax(logits, dim=-1)
    index = lower.long()[..., None]
    near = log_prob.gather(-1, index) * (1 - weight) + log_prob.gather(-1, index + 1) * weight
    return -near.squeeze(-1)


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """The closeness of each anchor's centre to that of its box, from 1 to 0 (FCOS, eq. 3).

    ``(P, 4), (P, 4) -> (P,)``; the centres of the anchors lie inside their boxes.
    """
    centre = box_centre(anchors)
    before, after = centre - boxes[..., :2], boxes[..., 2:] - centre  # P, (x, y)
    longer = torch.maximum(before, after).clamp(min=torch.finfo(before.dtype).tiny)
    ratio = torch.minimum(before, after).clamp(min=0) / longer
    return ratio.prod(dim=-1).sqrt()
