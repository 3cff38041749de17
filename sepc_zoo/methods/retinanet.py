"""RetinaNet: every anchor is classified with a focal loss (Lin et al. 2017)."""

from typing import Literal

import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor

from sepc_zoo.config import Fraction, NonNegative
from sepc_zoo.methods.box_losses import OverlapLoss, overlap_loss
from sepc_zoo.methods.losses import focal_loss
from sepc_zoo.methods.matching import (
    IGNORE,
    LowQuality,
    count_positives,
    ignore_negatives,
    match_by_iou,
)
from sepc_zoo.methods.method import Coder, Method
from sepc_zoo.methods.targets import Positives, positives
from sepc_zoo.ops.coders import decode, encode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms


class RetinaNet(Method, frozen=True, tag="retinanet"):
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.4
    low_quality: LowQuality = "claimed"  # see match_by_iou
    label_smoothing: Fraction = 0.0  # a positive's own class is taught as 1 minus this
    box_loss: Literal["smooth_l1"] | OverlapLoss = "smooth_l1"
    smooth_l1_beta: NonNegative = 0.11
    giou_eps: Fraction = 1e-7  # added to both divisors of the generalized IoU, square pixels
    mean_of_images: bool = False  # divide by the positives of each image alone, as torchvision

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_cls`` and ``loss_box``, over the number of positive anchors (section 4.1).

        An image counts for at least one.
        """
        if self.mean_of_images:
            return self._mean_of_images(predictions, anchors, targets, coder)
        match = self.match(anchors, targets)  # N, A
        pos = positives(match, targets)
        loss_cls = focal_loss(
            predictions.logits, pos, match == IGNORE, smoothing=self.label_smoothing
        )
        deltas = predictions.deltas[pos.image, pos.anchor]  # P, 4
        loss_box = pos.sum(self._box_loss(deltas, anchors.boxes[pos.anchor], pos, coder))
        count = count_positives(match)
        return {"loss_cls": (loss_cls, count), "loss_box": (loss_box, count)}

    def _box_loss(self, deltas: Tensor, anchors: Tensor, pos: Positives, coder: Coder) -> Tensor:
        if self.box_loss != "smooth_l1":
            boxes = decode(coder, anchors, deltas)
            return overlap_loss(self.box_loss, boxes, pos.boxes, self.giou_eps)
        wanted = encode(coder, anchors, pos.boxes)
        return F.smooth_l1_loss(deltas, wanted, reduction="none", beta=self.smooth_l1_beta)

    def _mean_of_images(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """Each image's loss by itself; their count is the number of images."""
        images = len(targets.lengths)
        of_one = replace(self, mean_of_images=False)
        sums: dict[str, Tensor] = {}
        for i in range(images):
            part = slice(i, i + 1)
            terms = of_one.loss(
                predictions._replace(
                    logits=predictions.logits[part], deltas=predictions.deltas[part]
                ),
                anchors._replace(exists=None if anchors.exists is None else anchors.exists[part]),
                targets.of_image(i),
                coder,
            )
            sums = {name: sums.get(name, 0) + total / n for name, (total, n) in terms.items()}
        count = torch.full((), images, device=predictions.logits.device)
        return {name: (total, count) for name, total in sums.items()}

    def counts(self, anchors: Anchors, targets: Targets) -> dict[str, Tensor]:
        if self.mean_of_images:
            count = torch.full((), len(targets.lengths), device=anchors.boxes.device)
        else:
            count = count_positives(self.match(anchors, targets))
        return {"loss_cls": count, "loss_box": count}

    def match(self, anchors: Anchors, targets: Targets) -> Tensor:
        """Index of the box of each anchor ``(N, A)``, NEGATIVE or IGNORE."""
        thresholds = self.positive_iou, self.negative_iou
        match = match_by_iou(
            targets.boxes, anchors.boxes, *thresholds, anchors.exists, self.low_quality
        )
        return ignore_negatives(match, anchors, targets)
