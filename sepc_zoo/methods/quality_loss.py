"""Quality focal loss (Generalized Focal Loss, eq. 5)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.methods.losses import background


def quality_positive(logits: Tensor, quality: Tensor) -> Tensor:
    """``|q - p|^2 BCE(p, q)`` of each logit whose class is there with quality q in 0..1."""
    distance = (quality - logits.sigmoid()).square()
    return distance * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
