"""Box coders in pairs: ``encode`` boxes as regression targets, ``decode`` them from predictions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sepc_zoo.config import Coder, DeltaCoder, DistributionCoder
from sepc_zoo.ops.boxes import box_centre

# A side changes by at most this factor; the exponential of a wild prediction would overflow.
MAX_SIDE_RATIO = 1000 / 16


def encode(coder: Coder, anchors: Tensor, boxes: Tensor) -> Tensor:
    """The regression target of each anchor, ``(..., 4), (..., 4) -> (..., 4)``.

    With a ``DistributionCoder`` it is the expected bin of each side.
    """
    if isinstance(coder, DeltaCoder):
        return encode_delta(anchors, boxes, coder.scale)
    if isinstance(coder, DistributionCoder):
        return encode_distance(anchors, boxes, "ltrb", coder.unit)
    return encode_distance(anchors, boxes, coder.order, coder.unit, coder.in_pixels)


def decode(coder: Coder, anchors: Tensor, deltas: Tensor) -> Tensor:
    """The box of each anchor from what its head predicts, ``(..., 4), (..., V) -> (..., 4)``."""
    if isinstance(coder, DeltaCoder):
        return decode_delta(anchors, deltas, coder.scale, coder.clamp_shrinking)
    if isinstance(coder, DistributionCoder):
        return decode_distance(anchors, expected_bins(deltas, coder.bins), "ltrb", coder.unit)
    return decode_distance(anchors, deltas, coder.order, coder.unit, coder.in_pixels)


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
    """The inverse of ``encode_delta``.

    Sides grow by a factor of 62.5 at most, and with ``clamp_shrinking`` shrink by no more.
    """
    deltas = deltas * _like(deltas, scale)
    limit = math.log(MAX_SIDE_RATIO)
    lower = -limit if clamp_shrinking else None
    size = anchors[..., 2:] - anchors[..., :2]
    centre = box_centre(anchors) + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(lower, limit).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _like(deltas: Tensor, scale: Sequence[float]) -> Tensor:
    """The scale on the device of the deltas; built there, as a copy would wait for a GPU."""
    return torch.stack([deltas.new_full((), value) for value in scale])


def encode_distance(
    anchors: Tensor, boxes: Tensor, order: str = "tblr", unit: float = 1.0, in_pixels: bool = False
) -> Tensor:
    """Distances from the anchors' centres to the four sides, ``(..., 4), (..., 4) -> (..., 4)``.

    They are in ``unit`` sides of the anchor or in pixels, and positive if the centre lies inside;
    ``order`` has the initials of top, bottom, left and right.
    """
    centre, step = _centre_and_step(anchors, unit, in_pixels)
    left, top = ((centre - boxes[..., :2]) / step).unbind(-1)
    right, bottom = ((boxes[..., 2:] - centre) / step).unbind(-1)
    sides = {"l": left, "t": top, "r": right, "b": bottom}
    return torch.stack([sides[side] for side in order], dim=-1)


def decode_distance(
    anchors: Tensor,
    distances: Tensor,
    order: str = "tblr",
    unit: float = 1.0,
    in_pixels: bool = False,
) -> Tensor:
    """The inverse of ``encode_distance``."""
    centre, step = _centre_and_step(anchors, unit, in_pixels)
    sides = dict(zip(order, distances.unbind(-1), strict=True))
    lower = centre - torch.stack([sides["l"], sides["t"]], dim=-1) * step
    upper = centre + torch.stack([sides["r"], sides["b"]], dim=-1) * step
    return torch.cat([lower, upper], dim=-1)


def _centre_and_step(anchors: Tensor, unit: float, in_pixels: bool) -> tuple[Tensor, Tensor]:
    """Centres of the anchors and the unit of distances along x and y, ``(..., 2)`` each."""
    size = anchors[..., 2:] - anchors[..., :2]
    step = torch.full_like(size, unit) if in_pixels else size * unit
    return box_centre(anchors), step


def expected_bins(logits: Tensor, bins: int) -> Tensor:
    """Expectation of each side's distribution, ``(..., 4 * bins) -> (..., 4)`` (GFL, eq. 4)."""
    values = torch.arange(bins, device=logits.device, dtype=logits.dtype)
    return logits.unflatten(-1, (4, bins)).softmax(dim=-1) @ values
