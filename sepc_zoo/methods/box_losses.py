"""Losses of predicted boxes, one value for each of P positive anchors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.ops.boxes import box_area, paired_intersection, paired_iou


def iou_loss(boxes: Tensor, targets: Tensor, min_iou: float = 1e-6) -> Tensor:
    """``-log IoU``, ``(P, 4), (P, 4) -> (P,)`` (UnitBox, eq. 3)."""
    return -paired_iou(boxes, targets).clamp(min=min_iou).log()


def giou_loss(boxes: Tensor, targets: Tensor, eps: float = 0.0) -> Tensor:
    """``1 - generalized IoU``, ``(P, 4), (P, 4) -> (P,)`` (Rezatofighi et al. 2019, algorithm 1).

    Args:
        eps: added to both divisors, square pixels.
    """
    tiny = torch.finfo(boxes.dtype).tiny
    inter = paired_intersection(boxes, targets)
    union = box_area(boxes) + box_area(targets) - inter
    lower = torch.minimum(boxes[..., :2], targets[..., :2])
    upper = torch.maximum(boxes[..., 2:], targets[..., 2:])
    around = box_area(torch.cat([lower, upper], dim=-1))
    iou = inter / (union + eps).clamp(min=tiny)
    return 1 - iou + (around - union) / (around + eps).clamp(min=tiny)


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
    """How central the centre of each anchor lies in its box, 1 to 0 (FCOS, eq. 3).

    Args:
        anchors: ``(P, 4)``, their centres inside of ``boxes (P, 4)``.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = centre - boxes[..., :2], boxes[..., 2:] - centre  # P, (x, y)
    longer = torch.maximum(before, after).clamp(min=torch.finfo(before.dtype).tiny)
    ratio = torch.minimum(before, after).clamp(min=0) / longer
    return ratio.prod(dim=-1).sqrt()
