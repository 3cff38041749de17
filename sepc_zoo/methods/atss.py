"""ATSS: the statistics of an object decide which anchors learn it (Zhang et al. 2020)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor

from sepc_zoo.config import DetectorConfig, Fraction, NonNegative
from sepc_zoo.methods.box_losses import OverlapLoss, centerness, overlap_loss
from sepc_zoo.methods.losses import focal_loss
from sepc_zoo.methods.matching import IGNORE, count_positives, ignore_negatives
from sepc_zoo.methods.method import Coder, Method, require_quality
from sepc_zoo.methods.point_matching import match_atss
from sepc_zoo.methods.targets import Positives, positives
from sepc_zoo.ops.coders import decode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms

SQUARES = {
    "base_scale": 8.0,
    "octaves": 1,
    "ratios": (1.0,),
    "centre": "corner",
    "rounded": False,
    "in_padding": False,
}


class ATSS(Method, frozen=True, tag="atss"):
    candidates: Annotated[int, Meta(ge=1, le=1000)] = 9  # nearest anchors of each level
    label_smoothing: Fraction = 0.0  # a positive's own class is taught as 1 minus this
    box_loss: OverlapLoss = "giou"
    box_weight: NonNegative = 2.0

    defaults: ClassVar[Mapping[str, Any]] = {
        "fpn": {"p6_from": "p5"},
        "head": {"norm": "group", "box_scales": True, "quality": "box"},
        "anchors": SQUARES,
        "coder": {"scale": (0.1, 0.1, 0.2, 0.2)},
        "postprocess": {"candidates": "pairs", "iou_threshold": 0.6},
    }

    def check(self, config: DetectorConfig) -> None:
        require_quality(config)

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_cls``, ``loss_box`` and ``loss_quality`` (section 4.1, losses of FCOS).

        ``loss_box`` is divided by the sum of the centerness targets, the others by the number of
        positive anchors, where an image counts for at least one.
        """
        assert predictions.quality is not None  # see check
        match = self.match(anchors, targets)  # N, A
        pos = positives(match, targets)
        loss_cls = focal_loss(
            predictions.logits, pos, match == IGNORE, smoothing=self.label_smoothing
        )

        central = centerness(anchors.boxes[pos.anchor], pos.boxes)  # P
        deltas = predictions.deltas[pos.image, pos.anchor]
        boxes = decode(coder, anchors.boxes[pos.anchor], deltas)
        loss_box = self.box_weight * pos.sum(
            central * overlap_loss(self.box_loss, boxes, pos.boxes)
        )
        logits = predictions.quality[pos.image, pos.anchor]
        loss_quality = pos.sum(
            F.binary_cross_entropy_with_logits(logits, central, reduction="none")
        )
        counts = self._counts(match, pos, central)
        sums = {"loss_cls": loss_cls, "loss_box": loss_box, "loss_quality": loss_quality}
        return {name: (total, counts[name]) for name, total in sums.items()}

    def counts(self, anchors: Anchors, targets: Targets) -> dict[str, Tensor]:
        match = self.match(anchors, targets)
        pos = positives(match, targets)
        return self._counts(match, pos, centerness(anchors.boxes[pos.anchor], pos.boxes))

    def _counts(self, match: Tensor, pos: Positives, central: Tensor) -> dict[str, Tensor]:
        count = count_positives(match)
        return {"loss_cls": count, "loss_box": pos.sum(central), "loss_quality": count}

    def match(self, anchors: Anchors, targets: Targets) -> Tensor:
        """Index of the box of each anchor ``(N, A)``, NEGATIVE or IGNORE."""
        match = match_atss(
            targets.boxes, anchors.boxes, anchors.lengths, anchors.exists, self.candidates
        )
        return ignore_negatives(match, anchors, targets)
