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
QUALITY_GAMMA = 2.0
# Number of logits in a chunk; on the CPU its intermediate results stay in the cache.
CACHED_LOGITS, LOGITS = 2**18, 2**24


def focal_loss(
    logits: Tensor,
    positives: Positives,
    ignored: Tensor,
    chosen: Tensor | None = None,
    ignored_pairs: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Sum of the focal loss over the classes of all anchors (RetinaNet, eq. 5): ``()``.

    A dense target is never built: all logits count as background, and the logits of the positives
    are corrected afterwards.

    Args:
        logits: ``(N, A, K)``.
        positives: the positive anchors and their labels.
        ignored: ``(N, A)``, anchors that do not count.
        chosen: ``(P,)``, False if the logit of a positive's own class is ignored.
        ignored_pairs: ``(M,)``, further single logits that do not count, as indices into the
            flattened logits; none is of an anchor in ``ignored``, or of a positive's own class.
        smoothing: a positive's own class has the target ``1 - smoothing``, as a quality (GFL,
            eq. 5). Targets of 0 are not smoothed: the small losses of thousands of background
            anchors would outweigh those of the objects.
    """
    own_index = flat_index(logits, positives.image, positives.anchor, positives.labels)
    pairs = own_index[:0] if ignored_pairs is None else ignored_pairs
    picked = torch.cat([own_index, pairs])
    negative, own = sum_background(logits, ~ignored, FOCAL_GAMMA, picked)
    own, in_pairs = own.split([len(own_index), len(pairs)])
    negative = negative - background(in_pairs, FOCAL_GAMMA).sum()
    if smoothing:
        as_positive = FOCAL_ALPHA * quality_focal(own, torch.full_like(own, 1 - smoothing))
    else:
        as_positive = focal_positive(own)
    as_positive = positives.weigh(as_positive)
    if chosen is not None:
        as_positive = as_positive.masked_fill(~chosen, 0)
    return (1 - FOCAL_ALPHA) * negative + positives.sum(as_positive - focal_negative(own))


def quality_focal_loss(
    logits: Tensor, positives: Positives, ignored: Tensor, quality: Tensor
) -> Tensor:
    """Sum of the quality focal loss over the classes of all anchors (GFL, eq. 5): ``()``.

    ``|q - p|^2 BCE(p, q)``, where the target q is the quality for a positive's own class, else 0.

    Args:
        logits: ``(N, A, K)``.
        ignored: ``(N, A)``, anchors that do not count.
        quality: ``(P,)`` in 0..1, such as the IoU of the predicted box.
    """
    own_index = flat_index(logits, positives.image, positives.anchor, positives.labels)
    negative, own = sum_background(logits, ~ignored, QUALITY_GAMMA, own_index)
    as_positive = positives.weigh(quality_focal(own, quality))
    return negative + positives.sum(as_positive - background(own, QUALITY_GAMMA))


def quality_focal(logits: Tensor, quality: Tensor) -> Tensor:
    """Quality focal loss of each logit (GFL, eq. 5); the focal loss where the quality is 1."""
    distance = (quality - logits.sigmoid()).abs() ** QUALITY_GAMMA
    return distance * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def cell_losses(
    logits: Tensor, positives: Positives, ignored_pairs: Tensor | None = None
) -> Tensor:
    """Focal loss of each positive anchor, summed over the classes ``(P,)``.

    ``ignored_pairs`` are as in ``focal_loss``, and sorted.
    """
    rows = logits[positives.image, positives.anchor]  # P, K
    own = rows.gather(1, positives.labels[:, None]).squeeze(1)
    losses = focal_negative(rows).sum(dim=1) - focal_negative(own) + focal_positive(own)
    if ignored_pairs is None or not len(losses):
        return losses
    cells = positives.image * logits.shape[1] + positives.anchor  # P, rising
    pair_cells = ignored_pairs // logits.shape[2]  # M
    place = torch.searchsorted(cells, pair_cells).clamp(max=len(cells) - 1)
    excess = focal_negative(logits.flatten()[ignored_pairs])
    return losses.index_add(0, place, -excess * (cells[place] == pair_cells))


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
    """Sum ``background`` over the anchors that count, and pick single logits.

    Both gradients are added in one tensor like the logits, the only one of that size. The forward
    pass fills it, so that the backward pass need not recompute the sigmoids.

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
    """Compute the sum ``()``, and write its gradient to ``gradient``, a tensor like the logits."""
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
    """Divide loss terms by their counts over all processes."""
    counts = mean_over_processes({name: count for name, (_, count) in terms.items()})
    return {name: total / counts[name] for name, (total, _) in terms.items()}


def mean_over_processes(counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the means of counts over all processes, whose sum counts as at least 1.

    Gradients are averaged over processes: of terms that are divided by these means, they are those
    of the whole batch.
    """
    dtype = torch.get_default_dtype()
    for count in counts.values():
        dtype = torch.promote_types(dtype, count.dtype)
    stacked = torch.stack([count.to(dtype) for count in counts.values()])
    means = sum_over_processes(stacked).clamp(min=1) / process_count()
    return dict(zip(counts, means.unbind(), strict=True))
