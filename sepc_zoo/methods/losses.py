"""Loss terms that the methods share."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.methods.targets import Positives
from sepc_zoo.ops.distributed import process_count, sum_over_processes
from sepc_zoo.outputs import Terms

FOCAL_ALPHA = 0.25  # weight of the positives
FOCAL_GAMMA = 2.0
# Number of logits in a chunk; on the CPU its intermediate results stay in the cache.
CACHED_LOGITS, LOGITS = 2**18, 2**24


def focal_loss(
    logits: Tensor, positives: Positives, ignored: Tensor, chosen: Tensor | None = None
) -> Tensor:
    """Sum of the focal loss over the classes of all anchors (RetinaNet, eq. 5): ``()``.

    A dense target is never built: all logits count as background, and the logits of the positives
    are corrected afterwards.

    Args:
        logits: ``(N, A, K)``.
        positives: the positive anchors and their labels.
        ignored: ``(N, A)``, anchors that do not count.
        chosen: ``(P,)``, False where the logit of a positive's own class is ignored.
    """
    own_index = flat_index(logits, positives.image, positives.anchor, positives.labels)
    negative, own = sum_background(logits, ~ignored, FOCAL_GAMMA, own_index)
    as_positive = focal_positive(own)
    if chosen is not None:
        as_positive = as_positive.masked_fill(~chosen, 0)
    return (1 - FOCAL_ALPHA) * negative + positives.sum(as_positive - focal_negative(own))


def cell_losses(logits: Tensor, positives: Positives) -> Tensor:
    """Focal loss of each positive anchor, summed over the classes ``(P,)``."""
    rows = logits[positives.image, positives.anchor]  # P, K
    own = rows.gather(1, positives.labels[:, None]).squeeze(1)
    return focal_negative(rows).sum(dim=1) - focal_negative(own) + focal_positive(own)


def focal_positive(logits: Tensor) -> Tensor:
    """Focal loss of each logit whose class is present (RetinaNet, eq. 5)."""
    return FOCAL_ALPHA * background(-logits, FOCAL_GAMMA)


def focal_negative(logits: Tensor) -> Tensor:
    """Focal loss of each logit whose class is absent (RetinaNet, eq. 5)."""
    return (1 - FOCAL_ALPHA) * background(logits, FOCAL_GAMMA)


def background(logits: Tensor, gamma: float) -> Tensor:
    """``-p^gamma log(1 - p)`` of each logit, p its sigmoid."""
    return logits.sigmoid() ** gamma * F.softplus(logits)


def flat_index(logits: Tensor, image: Tensor, anchor: Tensor, label: Tensor) -> Tensor:
    """Indices into the flattened ``logits (N, A, K)``."""
    _, num_anchors, num_classes = logits.shape
    return (image * num_anchors + anchor) * num_classes + label


def sum_background(
    logits: Tensor, counted: Tensor, gamma: float, picked: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of ``background`` over the anchors that count, and single logits.

    Both gradients are added in one tensor like the logits, the only one of that size. The forward
    pass fills it, so that the backward pass need not compute the sigmoids again.

    Args:
        logits: ``(N, A, K)``.
        counted: ``(N, A)``, True where an anchor counts.
        picked: ``(M,)``, indices into the flattened logits, which may repeat.

    Returns:
        The sum ``()`` and the logits picked ``(M,)``.
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
        if gradient is None:  # used up by an earlier backward pass through a retained graph
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


def mean_terms(terms: Terms) -> dict[str, Tensor]:
    """Loss terms divided by their counts over all processes."""
    counts = mean_over_processes({name: count for name, (_, count) in terms.items()})
    return {name: total / counts[name] for name, (total, _) in terms.items()}


def mean_over_processes(counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means of counts over all processes, at least 1, by which loss terms are divided.

    Gradients are averaged over processes; divided so, they are those of the whole batch.
    """
    stacked = torch.stack([count.to(torch.get_default_dtype()) for count in counts.values()])
    means = (sum_over_processes(stacked) / process_count()).clamp(min=1)
    return dict(zip(counts, means.unbind(), strict=True))
