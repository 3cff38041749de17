"""FSAF: no anchors, and each box is learned on the level where it fits best (Zhu et al. 2019)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sepc_zoo.config import Fraction
from sepc_zoo.methods.losses import cell_losses, focal_loss
from sepc_zoo.methods.matching import IGNORE, inside_crowd, match_by_centre
from sepc_zoo.methods.method import Coder, Method
from sepc_zoo.methods.targets import positives
from sepc_zoo.ops.coders import encode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms


class FSAF(Method, frozen=True, tag="fsaf"):
    central: Fraction = 0.2  # part of a box, by side, whose cells learn it
    min_cover: Fraction = 0.01  # part of a cell that this part must cover

    defaults: ClassVar[Mapping[str, Any]] = {
        "anchors": {"base_scale": 1.0, "octaves": 1, "ratios": (1.0,)},
        "head": {"box_bias": 1.0, "box_activation": "relu"},
        "coder": {"type": "distance"},
    }

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_cls`` and ``loss_box``, over the number of positive cells (section 3.2)."""
        match = self.match(anchors.boxes, targets)  # N, A
        pos = positives(match, targets)
        deltas = predictions.deltas[pos.image, pos.anchor]  # P, 4
        loss_box = iou_loss(deltas, encode(coder, anchors.boxes[pos.anchor], pos.boxes))

        with torch.no_grad():
            loss = cell_losses(predictions.logits, pos) + loss_box  # P
            level = anchors.levels[pos.anchor]
            num_boxes = targets.labels.numel()
            # One box more owns the anchors that are not positive.
            owner = pos.box if pos.real is None else pos.box.masked_fill(~pos.real, num_boxes)
            best = best_level(loss, owner, level, num_boxes + 1, len(anchors.lengths))
            chosen = level == best[owner]
        loss_cls = focal_loss(predictions.logits, pos, match == IGNORE, chosen)
        loss_box = pos.sum(loss_box.masked_fill(~chosen, 0))
        count = pos.sum(chosen.long())
        return {"loss_cls": (loss_cls, count), "loss_box": (loss_box, count)}

    def match(self, anchors: Tensor, targets: Targets) -> Tensor:
        """Index of the box of each cell ``(N, A)``, NEGATIVE or IGNORE."""
        match = match_by_centre(targets.boxes, anchors, self.central, self.min_cover)
        return match.masked_fill((match < 0) & inside_crowd(targets.crowds, anchors), IGNORE)


def best_level(loss: Tensor, box: Tensor, level: Tensor, num_boxes: int, num_levels: int) -> Tensor:
    """Online feature selection (FSAF, section 3.3): the level of least mean loss, ``(P,) -> (G,)``.

    Args:
        loss: loss of each positive cell ``(P,)``.
        box: index of the box that it belongs to ``(P,)``.
        level: index of the level that it lies on ``(P,)``.
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
