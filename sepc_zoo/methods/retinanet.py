"""RetinaNet: every anchor is classified with a focal loss (Lin et al. 2017)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
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
from sepc_zoo.methods.matching import IGNORE, inside_crowd, match_by_iou
from sepc_zoo.methods.targets import Truth, Truths, pad_truths, positives
from sepc_zoo.ops.coders import decode_delta, encode_delta
from sepc_zoo.outputs import Predictions


@dataclass(frozen=True)
class RetinaNet:
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    smooth_l1_beta: float = 0.11

    anchors: ClassVar[AnchorConfig] = AnchorConfig()
    box_bias: ClassVar[float] = 0.0
    positive_deltas: ClassVar[bool] = False

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        return decode_delta(anchors, deltas)

    def loss_sums(
        self, predictions: Predictions, anchors: Tensor, truths: Sequence[Truth]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """``loss_cls`` and ``loss_box``, and the number of positive anchors (section 4.1).

        An image counts for at least one.
        """
        logits, deltas, _ = predictions
        images = pad_truths(truths)
        match = self.match(anchors, images)  # N, A
        image, anchor, real, _, boxes, labels = positives(match, images)

        cells = flat_index(logits, image, anchor, labels)
        negative, own = sum_background(logits, match != IGNORE, FOCAL_GAMMA, cells)
        of_own = (focal_positive(own) - focal_negative(own)).masked_fill(~real, 0)
        loss_cls = (1 - FOCAL_ALPHA) * negative + of_own.sum()

        found = deltas[image, anchor]
        wanted = encode_delta(anchors[anchor], boxes).where(real[:, None], found.detach())
        loss_box = F.smooth_l1_loss(found, wanted, reduction="sum", beta=self.smooth_l1_beta)

        count = (match >= 0).sum(dim=1).clamp(min=1).sum()
        return {"loss_cls": loss_cls, "loss_box": loss_box}, count

    def match(self, anchors: Tensor, truths: Truths) -> Tensor:
        """The box of each anchor ``(N, A)``, NEGATIVE or IGNORE."""
        match = match_by_iou(truths.boxes, anchors, self.positive_iou, self.negative_iou)
        return match.masked_fill((match < 0) & inside_crowd(truths.crowds, anchors), IGNORE)
