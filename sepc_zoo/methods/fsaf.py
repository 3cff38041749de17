"""FSAF: anchor-free; each box is learned on the level where it fits best (Zhu et al. 2019)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sepc_zoo.config import DetectorConfig, DistanceCoder, Fraction, NonNegative
from sepc_zoo.errors import ConfigError
from sepc_zoo.methods.box_losses import OverlapLoss, overlap_loss
from sepc_zoo.methods.losses import cell_losses, focal_loss
from sepc_zoo.methods.matching import IGNORE, NEGATIVE, ignore_negatives, match_by_centre
from sepc_zoo.methods.method import Coder, Method
from sepc_zoo.methods.point_matching import match_by_centre_pairs
from sepc_zoo.methods.targets import positives
from sepc_zoo.ops.coders import decode, encode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms


class FSAF(Method, frozen=True, tag="fsaf"):
    central: Fraction = 0.2  # part of a box, by side, whose cells learn it
    min_cover: Fraction = 0.01  # part of a cell that this part must cover
    # Ignored where a box covers a cell without winning it: the cell, unless another box wins it; or
    # the pair of this cell and the class of the box.
    ignore: Literal["cells", "pairs"] = "cells"
    label_smoothing: Fraction = 0.0  # a positive's own class is taught as 1 minus this
    box_loss: OverlapLoss = "iou"
    min_distance: NonNegative = 0.0  # smallest distance that is learned, in units of the coder
    min_union: NonNegative = 1.0  # smallest union of boxes of the loss "iou", in squares of it
    count_negatives: bool = False  # divide by the negative cells where no cell is positive

    defaults: ClassVar[Mapping[str, Any]] = {
        "anchors": {"base_scale": 1.0, "octaves": 1, "ratios": (1.0,)},
        "head": {"box_bias": 1.0, "box_activation": "relu"},
        "coder": {"type": "distance"},
    }

    def check(self, config: DetectorConfig) -> None:
        coder = config.coder
        if not isinstance(coder, DistanceCoder) or coder.order != "tblr":
            raise ConfigError('method fsaf needs coder.type "distance" and coder.order "tblr"')

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_cls`` and ``loss_box``, over the number of positive cells (section 3.2)."""
        num_classes = predictions.logits.shape[2]
        match, pairs = self.match(anchors, targets, num_classes)  # N, A
        pos = positives(match, targets)
        deltas = predictions.deltas[pos.image, pos.anchor]  # P, 4
        if self.min_distance > 0:  # a clamp at 0 would take the gradient of distances of 0
            deltas = deltas.clamp(min=self.min_distance)
        cells = anchors.boxes[pos.anchor]
        if self.box_loss == "iou":
            wanted = encode(coder, cells, pos.boxes)
            loss_box = distance_iou_loss(deltas, wanted, self.min_union)
        else:
            loss_box = overlap_loss(self.box_loss, decode(coder, cells, deltas), pos.boxes)

        with torch.no_grad():
            loss = cell_losses(predictions.logits, pos, pairs) + loss_box  # P
            level = anchors.levels[pos.anchor]
            num_boxes = targets.labels.numel()
            # One box more owns the anchors that are not positive.
            owner = pos.box if pos.real is None else pos.box.masked_fill(~pos.real, num_boxes)
            best = best_level(loss, owner, level, num_boxes + 1, len(anchors.lengths))
            chosen = level == best[owner]
        loss_cls = focal_loss(
            predictions.logits, pos, match == IGNORE, chosen, pairs, self.label_smoothing
        )
        loss_box = pos.sum(loss_box.masked_fill(~chosen, 0))
        count = pos.sum(chosen.long())
        if self.count_negatives:
            count = torch.where(count > 0, count, (match == NEGATIVE).sum())
        return {"loss_cls": (loss_cls, count), "loss_box": (loss_box, count)}

    def match(
        self, anchors: Anchors, targets: Targets, num_classes: int
    ) -> tuple[Tensor, Tensor | None]:
        """Match cells to boxes.

        Returns:
            Index of the box of each cell ``(N, A)``, NEGATIVE or IGNORE; and, if pairs are ignored,
            their indices into the flattened logits ``(N, A, K)``.
        """
        if self.ignore == "cells":
            match = match_by_centre(
                targets.boxes, anchors.boxes, self.central, self.min_cover, anchors.exists
            )
            return ignore_negatives(match, anchors, targets), None
        match, pairs = match_by_centre_pairs(
            targets, anchors, num_classes, self.central, self.min_cover
        )
        match = ignore_negatives(match, anchors, targets)
        return match, pairs[match.flatten()[pairs // num_classes] != IGNORE]


def best_level(loss: Tensor, box: Tensor, level: Tensor, num_boxes: int, num_levels: int) -> Tensor:
    """Choose for each box the level of least mean loss, ``(P,) -> (G,)`` (FSAF, section 3.3).

    Args:
        loss: loss of each positive cell ``(P,)``.
        box: index of the box that it belongs to ``(P,)``.
        level: index of the level that it lies on ``(P,)``.
    """
    cell = box * num_levels + level  # one cell per (box, level)
    total = loss.new_full((num_boxes * num_levels,), torch.inf)
    total = total.scatter_reduce(0, cell, loss, "mean", include_self=False)
    return total.view(num_boxes, num_levels).argmin(dim=1)


def distance_iou_loss(found: Tensor, wanted: Tensor, min_union: float = 1.0) -> Tensor:
    """-log IoU of boxes around one centre, given as distances to their sides ``(P, 4) -> (P,)``.

    Distances are top, bottom, left, right, all at least 0 (UnitBox, eq. 3). The union counts as at
    least ``min_union``.
    """
    inter = _extent(torch.minimum(found, wanted))
    floor = max(min_union, torch.finfo(found.dtype).tiny)
    union = (_extent(found) + _extent(wanted) - inter).clamp(min=floor)
    return -(inter / union).clamp(min=1e-6).log()


def _extent(tblr: Tensor) -> Tensor:
    top, bottom, left, right = tblr.unbind(-1)
    return (top + bottom) * (left + right)
