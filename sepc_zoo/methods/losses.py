"""Loss terms that the methods share."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.ops.processes import process_count, sum_over_processes

FOCAL_ALPHA = 0.25  # weight of the positives
FOCAL_GAMMA = 2.0


def focal_positive(logits: Tensor) -> Tensor:
    """Focal loss of each logit whose class is there (RetinaNet, eq. 5)."""
    return FOCAL_ALPHA * (-logits).sigmoid() ** FOCAL_GAMMA * F.softplus(-logits)


def focal_negative(logits: Tensor) -> Tensor:
    """Focal loss of each logit whose class is not there (RetinaNet, eq. 5)."""
    return (1 - FOCAL_ALPHA) * logits.sigmoid() ** FOCAL_GAMMA * F.softplus(logits)


def normalized(sums: Mapping[str, Tensor], count: Tensor) -> dict[str, Tensor]:
    """Loss terms divided by their count over all processes."""
    mean_count = mean_over_processes(count).clamp(min=1)
    return {name: total / mean_count for name, total in sums.items()}


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a count over all processes, by which a distributed loss is divided.

    Gradients are averaged over processes; divided so, they are those of the whole batch.
    """
    return sum_over_processes(count.to(torch.get_default_dtype())) / process_count()
