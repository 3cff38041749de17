"""Non-maximum suppression as one custom operator, which each export format translates."""

import torch
from torch import Tensor
from torchvision.ops import nms


@torch.library.custom_op("sepc_zoo::keep_best", mutates_args=())
def keep_best(
    boxes: Tensor, scores: Tensor, limit: int, iou_threshold: float, floor: float
) -> Tensor:
    """Non-maximum suppression within each of K groups; the scores of removed boxes are ``floor``.

    Args:
        boxes: ``(B, S, 4)``.
        scores: ``(B, K, S)``, as the result; only scores above ``floor`` are candidates.
        limit: maximum number of boxes kept in each group.
        floor: score of what is not kept.
    """
    kept = torch.full_like(scores, floor)
    for boxes_of, scores_of, kept_of in zip(boxes, scores, kept, strict=True):
        for group in (scores_of > floor).any(dim=1).nonzero().flatten().tolist():
            index = (scores_of[group] > floor).nonzero().flatten()
            index = index[nms(boxes_of[index], scores_of[group, index], iou_threshold)[:limit]]
            kept_of[group, index] = scores_of[group, index]
    return kept


@keep_best.register_fake
def _(
    boxes: Tensor,  # noqa: ARG001
    scores: Tensor,
    limit: int,  # noqa: ARG001
    iou_threshold: float,  # noqa: ARG001
    floor: float,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(scores)
