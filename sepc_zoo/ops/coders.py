"""Box codings in pairs: from boxes to what a head regresses, and back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sepc_zoo.config import DeltaCoder, DistanceCoder

# A side changes by at most this factor; the exponential of a wild prediction would overflow.
MAX_SIDE_RATIO = 1000 / 16


def encode(coder: DeltaCoder | DistanceCoder, anchors: Tensor, boxes: Tensor) -> Tensor:
    """The regression target of each anchor, ``(..., 4), (..., 4) -> (..., 4)``."""
    if isinstance(coder, DeltaCoder):
        return encode_delta(anchors, boxes, coder.scale)
    return encode_tblr(anchors, boxes)


def decode(coder: DeltaCoder | DistanceCoder, anchors: Tensor, deltas: Tensor) -> Tensor:
    """The inverse of ``encode``."""
    if isinstance(coder, DeltaCoder):
        return decode_delta(anchors, deltas, coder.scale, coder.clamp_shrinking)
    return decode_tblr(anchors, deltas)


def encode_delta(
    anchors: Tensor, boxes: Tensor, scale: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Shift and log-ratio from anchors to boxes, ``(..., 4), (..., 4) -> (..., 4)``.

    (dx, dy) are in sides of the anchor, (dw, dh) logarithms (Faster R-CNN, section 3.1.2), divided
    by ``scale``.
    """
    anchor_size, box_size = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    delta = torch.cat([shift / anchor_size, (box_size / anchor_size).log()], dim=-1)
    return delta / _like(delta, scale)


def decode_delta(
    anchors: Tensor,
    deltas: Tensor,
    scale: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp_shrinking: bool = True,
) -> Tensor:
    """The inverse of ``encode_delta``; sides change by a factor of 62.5 at most.

    Args:
        clamp_shrinking: whether that factor also bounds sides that shrink.
    """
    deltas = deltas * _like(deltas, scale)
    limit = math.log(MAX_SIDE_RATIO)
    lower = -limit if clamp_shrinking else None
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(lower, limit).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _like(deltas: Tensor, scale: Sequence[float]) -> Tensor:
    """The scale on the device of the deltas; built there, as a copy would wait for a GPU."""
    return torch.stack([deltas.new_full((), value) for value in scale])


def encode_tblr(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Distances from the anchors' centres to the four sides, ``(..., 4), (..., 4) -> (..., 4)``.

    Top, bottom, left, right, in sides of the anchor; positive where the centre lies inside.
    """
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    left, top = ((centre - boxes[..., :2]) / size).unbind(-1)
    right, bottom = ((boxes[..., 2:] - centre) / size).unbind(-1)
    return torch.stack([top, bottom, left, right], dim=-1)


def decode_tblr(anchors: Tensor, tblr: Tensor) -> Tensor:
    """The inverse of ``encode_tblr``."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    top, bottom, left, right = tblr.unbind(-1)
    lower = centre - torch.stack([left, top], dim=-1) * size
    upper = centre + torch.stack([right, bottom], dim=-1) * size
    return torch.cat([lower, upper], dim=-1)
