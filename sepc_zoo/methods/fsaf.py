"""FSAF: no anchors, and each box is learned on the level where it fits best (Zhu et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sepc_zoo.config import AnchorConfig
from sepc_zoo.methods.losses import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    flat_index,
    focal_negative,
    focal_positive,
    sum_background,
)
from sepc_zoo.methods.matching import IGNORE, inside_crowd, match_by_centre
from sepc_zoo.methods.targets import Truth, Truths, pad_truths, positives
from sepc_zoo.ops.coders import decode_tblr, encode_tblr
from sepc_zoo.outputs import Predictions


@dataclass(frozen=True)
class FSAF:
    central: float = 0.2  # part of a box, by side, whose cells learn it
    min_cover: float = 0.01  # of a cell, by that part

    anchors: ClassVar[AnchorConfig] = AnchorConfig(base_scale=1.0, octaves=1, ratios=(1.0,))
    box_bias: ClassVar[float] = 1.0
    positive_deltas: ClassVar[bool] = True

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        return decode_tblr(anchors, deltas)

    def loss_sums(
        self, predictions: Predictions, anchors: Tensor, truths: Sequence[Truth]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """``loss_cls`` and ``loss_box``, and the number of positive cells (section 3.2)."""
        logits, deltas, sizes = predictions
        images = pad_truths(truths)
        match = self.match(anchors, images)  # N, A
        image, anchor, real, box, boxes, labels = positives(match, images)

        cells = flat_index(logits, image, anchor, labels)
        negative, own = sum_background(logits, match != IGNORE, FOCAL_GAMMA, cells)
        as_positive, as_negative = focal_positive(own), focal_negative(own)
        loss_box = iou_loss(deltas[image, anchor], encode_tblr(anchors[anchor], boxes))

        with torch.no_grad():
            others = focal_negative(logits[image, anchor]).sum(dim=1) - as_negative
            loss = others + as_positive + loss_box  # P
            level = level_of_anchors(predictions)[anchor]
            num_boxes = images.labels.numel()
            owner = box.masked_fill(~real, num_boxes)  # one box more, that owns what is not real
            best = best_level(loss, owner, level, num_boxes + 1, len(sizes))
            chosen = real & (level == best[owner])
        # Where another level was chosen, a cell forgets its box and that box's class alone.
        correction = torch.where(chosen, as_positive - as_negative, -as_negative)
        loss_cls = (1 - FOCAL_ALPHA) * negative + correction.masked_fill(~real, 0).sum()
        loss_box = loss_box.masked_fill(~chosen, 0).sum()
        return {"loss_cls": loss_cls, "loss_box": loss_box}, chosen.sum()

    def match(self, anchors: Tensor, truths: Truths) -> Tensor:
        """The box of each cell ``(N, A)``, NEGATIVE or IGNORE."""
        match = match_by_centre(truths.boxes, anchors, self.central, self.min_cover)
        return match.masked_fill((match < 0) & inside_crowd(truths.crowds, anchors), IGNORE)


def level_of_anchors(predictions: Predictions) -> Tensor:
    """The level on which each anchor lies ``(A,)``."""
    device = predictions.logits.device
    lengths = enumerate(predictions.level_lengths)
    return torch.cat([torch.full((length,), level, device=device) for level, length in lengths])


def best_level(loss: Tensor, box: Tensor, level: Tensor, num_boxes: int, num_levels: int) -> Tensor:
    """Online feature selection (FSAF, section 3.3): the level of least mean loss, ``(P,) -> (G,)``.

    ``loss`` of a positive cell, the ``box`` it belongs to and the ``level`` it lies on.
    """
    cell = box * num_levels + level  # one cell per (box, level)
    total = loss.new_full((num_boxes * num_levels,), torch.inf)
    total = total.scatter_reduce(0, cell, loss, "mean", include_self=False)
    return total.view(num_boxes, num_levels).argmin(dim=1)


def iou_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """-log IoU of boxes around one centre, given as distances to their sides ``(P, 4) -> (P,)``.

    Distances are in sides of the anchor, all at least 0. The union counts as at least 1 (UnitBox,
    eq. 3).
    """
    inter = _extent(torch.minimum(found, wanted))
    union = (_extent(found) + _extent(wanted) - inter).clamp(min=1)
    return -(inter / union).clamp(min=1e-6).log()


def _extent(tblr: Tensor) -> Tensor:
    top, bottom, left, right = tblr.unbind(-1)
    return (top + bottom) * (left + right)
