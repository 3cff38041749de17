"""RetinaNet: every anchor is classified with a focal loss (Lin et al. 2017)."""

import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.config import Fraction, NonNegative
from sepc_zoo.methods.losses import focal_loss
from sepc_zoo.methods.matching import IGNORE, count_positives, ignore_negatives, match_by_iou
from sepc_zoo.methods.method import Coder, Method
from sepc_zoo.methods.targets import positives
from sepc_zoo.ops.coders import encode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms


class RetinaNet(Method, frozen=True, tag="retinanet"):
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.4
    smooth_l1_beta: NonNegative = 0.11

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_cls`` and ``loss_box``, over the number of positive anchors (section 4.1).

        An image counts for at least one.
        """
        match = self.match(anchors, targets)  # N, A
        pos = positives(match, targets)
        loss_cls = focal_loss(predictions.logits, pos, ignored=match == IGNORE)

        deltas = predictions.deltas[pos.image, pos.anchor]  # P, 4
        wanted = encode(coder, anchors.boxes[pos.anchor], pos.boxes)
        distance = F.smooth_l1_loss(deltas, wanted, reduction="none", beta=self.smooth_l1_beta)
        loss_box = pos.sum(distance)

        count = count_positives(match)
        return {"loss_cls": (loss_cls, count), "loss_box": (loss_box, count)}

    def counts(self, anchors: Anchors, targets: Targets) -> dict[str, Tensor]:
        count = count_positives(self.match(anchors, targets))
        return {"loss_cls": count, "loss_box": count}

    def match(self, anchors: Anchors, targets: Targets) -> Tensor:
        """Index of the box of each anchor ``(N, A)``, NEGATIVE or IGNORE."""
        thresholds = self.positive_iou, self.negative_iou
        match = match_by_iou(targets.boxes, anchors.boxes, *thresholds, anchors.exists)
        return ignore_negatives(match, anchors, targets)
