"""GFL: classes are scored by the quality of their boxes, and box sides are distributions.

Generalized Focal Loss (Li et al. 2020), with the matching of ATSS.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from torch import Tensor

from sepc_zoo.config import DetectorConfig, DistributionCoder, NonNegative
from sepc_zoo.errors import ConfigError
from sepc_zoo.methods.atss import SQUARES
from sepc_zoo.methods.box_losses import OverlapLoss, distribution_focal_loss, overlap_loss
from sepc_zoo.methods.losses import quality_focal_loss
from sepc_zoo.methods.matching import IGNORE, count_positives, ignore_negatives
from sepc_zoo.methods.method import Coder, Method
from sepc_zoo.methods.point_matching import match_atss
from sepc_zoo.methods.targets import positives
from sepc_zoo.ops.boxes import paired_iou
from sepc_zoo.ops.coders import decode, encode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms

MARGIN = 0.1  # bins between the last bin and the largest target


class GFL(Method, frozen=True, tag="gfl"):
    candidates: Annotated[int, Meta(ge=1, le=1000)] = 9  # nearest anchors of each level
    box_loss: OverlapLoss = "giou"
    box_weight: NonNegative = 2.0
    distribution_weight: NonNegative = 0.25

    defaults: ClassVar[Mapping[str, Any]] = {
        "fpn": {"p6_from": "p5"},
        "head": {"norm": "group", "box_scales": True},
        "anchors": SQUARES,
        "coder": {"type": "distribution"},
        "postprocess": {"candidates": "pairs", "iou_threshold": 0.6},
    }

    lacks: ClassVar[Mapping[str, str]] = {
        "label_smoothing": "the target of a class is soft already: the IoU of the predicted box",
    }

    def check(self, config: DetectorConfig) -> None:
        if not isinstance(config.coder, DistributionCoder):
            raise ConfigError('method gfl learns distributions: coder.type must be "distribution"')

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_cls`` (eq. 5), ``loss_box`` and ``loss_dfl`` (eq. 6).

        ``loss_cls`` is divided by the number of positive anchors, where an image counts for at
        least one; the others are weighted by each anchor's best score, and divided by its sum.
        """
        assert isinstance(coder, DistributionCoder)
        match = self.match(anchors, targets)  # N, A
        pos = positives(match, targets)
        deltas = predictions.deltas[pos.image, pos.anchor]  # P, 4 * bins
        boxes = decode(coder, anchors.boxes[pos.anchor], deltas)
        quality = paired_iou(boxes, pos.boxes).detach()
        loss_cls = quality_focal_loss(predictions.logits, pos, match == IGNORE, quality)

        score = predictions.logits.detach()[pos.image, pos.anchor].amax(dim=1).sigmoid()  # P
        loss_box = self.box_weight * pos.sum(score * overlap_loss(self.box_loss, boxes, pos.boxes))
        wanted = encode(coder, anchors.boxes[pos.anchor], pos.boxes)
        wanted = wanted.clamp(min=0, max=coder.bins - 1 - MARGIN)  # P, 4
        loss_dfl = distribution_focal_loss(deltas.unflatten(1, (4, coder.bins)), wanted)
        loss_dfl = self.distribution_weight * pos.sum(score * loss_dfl.mean(dim=1))

        count, total = count_positives(match), pos.sum(score)
        return {
            "loss_cls": (loss_cls, count),
            "loss_box": (loss_box, total),
            "loss_dfl": (loss_dfl, total),
        }

    def match(self, anchors: Anchors, targets: Targets) -> Tensor:
        """Index of the box of each anchor ``(N, A)``, NEGATIVE or IGNORE."""
        match = match_atss(
            targets.boxes, anchors.boxes, anchors.lengths, anchors.exists, self.candidates
        )
        return ignore_negatives(match, anchors, targets)
