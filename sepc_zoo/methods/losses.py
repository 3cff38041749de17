"""Loss terms that the methods share."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.ops.distributed import process_count, sum_over_processes

FOCAL_ALPHA = 0.25  # weight of the positives
FOCAL_GAMMA = 2.0
# Logits that are looked at together; on the CPU what is made of them on the way stays in its cache.
CACHED_LOGITS, LOGITS = 2**18, 2**24


def focal_positive(logits: Tensor) -> Tensor:
    """Focal loss of each logit whose class is there (RetinaNet, eq. 5)."""
    return FOCAL_ALPHA * background(-logits, FOCAL_GAMMA)


def focal_negative(logits: Tensor) -> Tensor:
    """Focal loss of each logit whose class is not there (RetinaNet, eq. 5)."""
    return (1 - FOCAL_ALPHA) * background(logits, FOCAL_GAMMA)


def background(logits: Tensor, gamma: float) -> Tensor:
    """``-p^gamma log(1 - p)`` of each logit, p its sigmoid."""
    return logits.sigmoid() ** gamma * F.softplus(logits)


def flat_index(logits: Tensor, image: Tensor, anchor: Tensor, label: Tensor) -> Tensor:
    """Places in the flattened ``logits (N, A, K)``."""
    _, num_anchors, num_classes = logits.shape
    return (image * num_anchors + anchor) * num_classes + label


def sum_background(
    logits: Tensor, counted: Tensor, gamma: float, picked: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of ``background`` over the anchors that count, and single logits.

    The gradients of both go into one tensor as large as the logits, the only one of that size. It
    is made while the logits are at hand, and not a second time on the way back.

    Args:
        logits: ``(N, A, K)``.
        counted: ``(N, A)``, True where an anchor counts.
        picked: ``(M,)``, places in the flattened logits, which may repeat.

    Returns:
        ``()`` and ``(M,)``.
    """
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    return _SumBackground.apply(logits, counted, gamma, picked, with_gradient)


class _SumBackground(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, counted: Tensor, gamma: float, picked: Tensor, gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logits = logits.contiguous()
        ctx.gamma = gamma
        ctx.save_for_backward(logits, counted, picked)
        ctx.gradient = torch.empty_like(logits) if gradient else None
        return _background_pass(logits, counted, gamma, ctx.gradient), logits.view(-1)[picked]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_sum: Tensor, of_picked: Tensor) -> tuple[Tensor | None, ...]:
        logits, counted, picked = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # given away, by an earlier pass through a graph that was retained
            gradient = torch.empty_like(logits)
            _background_pass(logits, counted, ctx.gamma, gradient)
        gradient.mul_(of_sum).view(-1).index_add_(0, picked, of_picked)
        return gradient, None, None, None, None


def _background_pass(
    logits: Tensor, counted: Tensor, gamma: float, gradient: Tensor | None
) -> Tensor:
    """The sum ``()``, and its gradient into a tensor like the logits."""
    num_classes = logits.shape[-1]
    rows, weights = logits.view(-1, num_classes), counted.reshape(-1, 1).to(logits.dtype)
    grad_rows = None if gradient is None else gradient.view(-1, num_classes)
    step = max(1, (CACHED_LOGITS if logits.device.type == "cpu" else LOGITS) // num_classes)
    buffers = logits.new_empty(4, min(step, len(rows)), num_classes)
    sums = []
    for start in range(0, len(rows), step):
        x, weight = rows[start : start + step], weights[start : start + step]
        prob, loss, focus, slope = buffers[:, : len(x)]
        torch.sigmoid(x, out=prob)
        F.softplus(x, out=loss)  # type: ignore[call-arg]
        torch.pow(prob, gamma, out=focus).mul_(weight)
        sums.append(torch.mul(focus, loss, out=slope).sum())
        if grad_rows is not None:  # p^gamma (gamma (1 - p) loss + p)
            torch.addcmul(loss, prob, loss, value=-1, out=slope)
            torch.add(prob, slope, alpha=gamma, out=slope)
            torch.mul(focus, slope, out=grad_rows[start : start + step])
    return torch.stack(sums).sum()


def normalized(sums: Mapping[str, Tensor], count: Tensor) -> dict[str, Tensor]:
    """Loss terms divided by their count over all processes."""
    mean_count = mean_over_processes(count).clamp(min=1)
    return {name: total / mean_count for name, total in sums.items()}


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a count over all processes, by which a distributed loss is divided.

    Gradients are averaged over processes; divided so, they are those of the whole batch.
    """
    return sum_over_processes(count.to(torch.get_default_dtype())) / process_count()
