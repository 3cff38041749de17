"""Loss terms that the methods share."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

FOCAL_ALPHA = 0.25  # weight of the positives
FOCAL_GAMMA = 2.0


def focal_positive(logits: Tensor) -> Tensor:
    """Focal loss of each logit whose class is there (RetinaNet, eq. 5)."""
    return FOCAL_ALPHA * (-logits).sigmoid() ** FOCAL_GAMMA * F.softplus(-logits)


def focal_negative(logits: Tensor) -> Tensor:
    """Focal loss of each logit whose class is not there (RetinaNet, eq. 5)."""
    return (1 - FOCAL_ALPHA) * logits.sigmoid() ** FOCAL_GAMMA * F.softplus(logits)


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a count over all processes, by which a distributed loss is divided.

    Gradients are averaged over processes; divided so, they are those of the whole batch.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = count.clone().float()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count
