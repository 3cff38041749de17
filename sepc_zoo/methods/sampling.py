"""Random samples of anchors or regions, for losses that do not use all of them."""

import torch
from torch import Tensor

from sepc_zoo.methods.matching import NEGATIVE


def sample(match: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draw the same number of anchors for each image (Faster R-CNN, section 3.1.3).

    Positives are drawn first, at most this fraction; negatives make up the rest. No size depends on
    the match, so nothing waits for a GPU.

    Args:
        match: ``(N, A)``, index of an anchor's box, NEGATIVE or IGNORE.
        count: size of an image's sample.

    Returns:
        Indices of anchors ``(N, S)``, where S is at most ``count``, and whether each belongs to the
        sample ``(N, S)``: an image may have too few anchors that are not ignored.
    """
    key = torch.rand(match.shape, device=match.device)
    num_anchors = match.shape[1]
    positive = _draw(key, match >= 0, min(int(count * positive_fraction), num_anchors))
    negative = _draw(key, match == NEGATIVE, min(count, num_anchors))
    wanted = count - positive[1].sum(dim=1, keepdim=True)  # N, 1
    place = torch.arange(negative[1].shape[1], device=match.device)
    drawn = torch.cat([positive[1], negative[1] & (place < wanted)], dim=1)
    index = torch.cat([positive[0], negative[0]], dim=1)
    order = drawn.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
    return index.gather(1, order), drawn.gather(1, order)


def _draw(key: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw the allowed anchors of highest key; where there are too few, the last are not valid."""
    top = key.masked_fill(~allowed, -1).topk(count, dim=1)
    return top.indices, top.values >= 0
