"""Gradients of a step: accumulated over batches, clipped, and applied where they are finite."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn, optim
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sepc_zoo.data import Batch
from sepc_zoo.methods.losses import mean_over_processes
from sepc_zoo.ops.devices import to_device
from sepc_zoo.outputs import Terms
from sepc_zoo.training.run import Run


def update_weights(run: Run, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor]:
    """Make a step of the optimizer; return the loss terms, and the norm ``()`` of the gradient."""
    losses = accumulate_gradient(run, batches)
    max_norm, amp = run.recipe.clip_grad, run.options.amp
    norm = clip_and_step(run.model, run.optimizer, run.scaler, max_norm, amp)
    run.optimizer.zero_grad()
    return losses, norm


def accumulate_gradient(run: Run, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Add up the gradients of the batches of one step, and return its loss terms.

    The gradient is that of one large batch where the counts of the loss terms are known before the
    backward pass, or where all terms share one count; otherwise each batch is divided by its own
    counts, and the step is the mean of its batches.
    """
    losses: dict[str, Tensor] = {}
    counts: list[dict[str, Tensor]] = []
    known = known_divisors(run, batches) if len(batches) > 1 else None
    for i, batch in enumerate(batches):
        is_last = i + 1 == len(batches)
        with nullcontext() if is_last else run.accelerator.no_sync(run.model):
            terms = loss_terms(run, batch)
            counts.append({name: count for name, (_, count) in terms.items()})
            if known is not None:
                divisors = known
            elif not share_count(counts[i]):
                means = mean_over_processes(counts[i])
                divisors = {name: len(batches) * mean for name, mean in means.items()}
            elif i == 0:
                divisors = mean_over_processes(counts[0])
            scaled = {name: total / divisors[name] for name, (total, _) in terms.items()}
            backward(torch.stack(list(scaled.values())).sum(), run.scaler)
        losses = {name: losses.get(name, 0) + term.detach() for name, term in scaled.items()}
    if known is None and len(batches) > 1 and share_count(counts[0]):
        name = next(iter(losses))
        ratio = divisors[name] / mean_over_processes(sum_counts(counts))[name]
        for gradient in gradients(run.model):
            gradient.mul_(ratio)
        losses = {name: loss * ratio for name, loss in losses.items()}
    return losses


def loss_terms(run: Run, batch: Batch) -> Terms:
    """Make the loss terms of a batch of this process, sums and counts."""
    with run.accelerator.autocast():
        outputs = run.model(batch.images, batch.targets)
    if run.unseen_classes:
        outputs = outputs._replace(logits=detach_classes(outputs.logits, run.unseen_classes))
    return run.detector.loss_terms(outputs, batch.targets)


def detach_classes(logits: Tensor, labels: Sequence[int]) -> Tensor:
    """Logits ``(N, A, K)`` without gradient for some classes.

    Objects of a class that the data does not label would be learned as background.
    """
    is_unseen = torch.zeros(logits.shape[-1], dtype=torch.bool)
    is_unseen[list(labels)] = True
    return torch.where(to_device(is_unseen, logits.device), logits.detach(), logits)


def known_divisors(run: Run, batches: Sequence[Batch]) -> dict[str, Tensor] | None:
    """Return the divisor of each loss term of a step, or None where it depends on predictions."""
    counts = []
    for batch in batches:
        height, width = batch.images.shape[-2:]
        of_batch = run.detector.loss_counts((height, width), batch.targets)
        if of_batch is None:
            return None
        counts.append(of_batch)
    total = sum_counts(counts)
    return mean_over_processes({k: to_device(v, run.accelerator.device) for k, v in total.items()})


def sum_counts(counts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sum the counts of each loss term over batches."""
    return {name: torch.stack([part[name] for part in counts]).sum(dim=0) for name in counts[0]}


def share_count(counts: Mapping[str, Tensor]) -> bool:
    """Whether all loss terms are divided by one and the same count."""
    return len({id(count) for count in counts.values()}) == 1


def backward(loss: Tensor, scaler: GradScaler) -> None:
    """Make the gradient of a loss; all of it is NaN where the loss is not finite."""
    finite = torch.where(loss.detach().isfinite(), 1.0, math.nan)
    scaler.scale(loss * finite).backward()


def clip_and_step(
    model: nn.Module,
    optimizer: optim.Optimizer,
    scaler: GradScaler,
    max_norm: float,
    amp: str | None = None,
) -> Tensor:
    """Clip the gradient and make a step of the optimizer, or none where the norm is not finite.

    The first step waits for the device: torch's fused SGD leaves new momenta uninitialised in a
    step that it skips. Optimizers that are not fused wait in each step.

    Returns:
        The norm ``()`` of the gradient before it was clipped.
    """
    if amp == "fp16":
        scaler.unscale_(optimizer)
    norm = get_total_norm(gradients(model))
    # The norm of finite gradients may overflow. NaN as the norm makes them NaN, so that the scaler
    # skips the step; the scaler of fp16 has checked them before.
    applied = norm if amp == "fp16" else torch.where(norm.isfinite(), norm, math.nan)
    clip_grads_with_norm_(model.parameters(), max_norm, applied)
    if (scaler.is_enabled() and optimizer.state) or norm.isfinite().item():
        scaler.step(optimizer)
    scaler.update(None if amp == "fp16" else 1.0)
    return norm


def gradients(model: nn.Module) -> list[Tensor]:
    """List the gradients of the parameters that have one."""
    return [p.grad for p in model.parameters() if p.grad is not None]
