"""FCOS: every point inside a box learns it, on the level of its size (Tian et al. 2019)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor

from sepc_zoo.config import DetectorConfig, Fraction, Positive
from sepc_zoo.errors import ConfigError
from sepc_zoo.methods.box_losses import OverlapLoss, centerness, overlap_loss
from sepc_zoo.methods.losses import focal_loss
from sepc_zoo.methods.matching import IGNORE, ignore_negatives
from sepc_zoo.methods.method import Coder, Method
from sepc_zoo.methods.point_matching import match_points
from sepc_zoo.methods.targets import Positives, positives
from sepc_zoo.ops.coders import decode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms

# Counts are at least 1. In millionths, a sum of centerness targets is at least 1e-6.
MILLION = 10**6


class CenternessMethod(Method, frozen=True):
    """FCOS's three losses, for a method whose head also predicts the centerness of each positive.

    A subclass adds ``match``, ``sum_boxes`` and ``count_terms``.
    """

    label_smoothing: Fraction = 0.0  # a positive's own class is taught as 1 minus this
    box_loss: OverlapLoss = "giou"

    def check(self, config: DetectorConfig) -> None:
        if getattr(config.head, "quality", "none") == "none":
            raise ConfigError(
                f'method {self.name} learns quality: head.quality must be "cls" or "box"'
            )

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_cls``, ``loss_box`` (eq. 2) and ``loss_quality`` (section 3.3)."""
        assert predictions.quality is not None  # see check
        match = self.match(anchors, targets)  # N, A
        pos = positives(match, targets)
        loss_cls = focal_loss(
            predictions.logits, pos, match == IGNORE, smoothing=self.label_smoothing
        )

        central = centerness(anchors.boxes[pos.anchor], pos.boxes)  # P
        deltas = predictions.deltas[pos.image, pos.anchor]
        loss_box = self.sum_boxes(decode(coder, anchors.boxes[pos.anchor], deltas), pos, central)
        logits = predictions.quality[pos.image, pos.anchor]
        quality = F.binary_cross_entropy_with_logits(logits, central, reduction="none")
        sums = {"loss_cls": loss_cls, "loss_box": loss_box, "loss_quality": pos.sum(quality)}
        counts = self.count_terms(match, pos, central)
        return {name: (total, counts[name]) for name, total in sums.items()}

    def counts(self, anchors: Anchors, targets: Targets) -> dict[str, Tensor]:
        match = self.match(anchors, targets)
        pos = positives(match, targets)
        return self.count_terms(match, pos, centerness(anchors.boxes[pos.anchor], pos.boxes))

    def match(self, anchors: Anchors, targets: Targets) -> Tensor:
        """Index of the box of each anchor ``(N, A)``, NEGATIVE or IGNORE."""
        raise NotImplementedError

    def sum_boxes(self, boxes: Tensor, pos: Positives, central: Tensor) -> Tensor:
        """``loss_box`` ``()`` of decoded ``boxes (P, 4)``, which ``central (P,)`` may weight."""
        raise NotImplementedError

    def count_terms(self, match: Tensor, pos: Positives, central: Tensor) -> dict[str, Tensor]:
        """The divisor of each term, by name."""
        raise NotImplementedError


class FCOS(CenternessMethod, frozen=True, tag="fcos"):
    reach: tuple[Positive, Positive] = (4.0, 8.0)  # farthest side of a level's boxes, in strides
    reach_inclusive: bool = True  # whether a box at an end of it belongs to both levels
    radius: Annotated[float, Meta(gt=0, le=64)] | None = 1.5  # centre sampling, in strides
    coarse_areas: bool = False  # compare areas as torchvision does
    weighted_boxes: bool = True  # weight box losses by centerness
    eps: Fraction = 0.0  # added to both divisors of the generalized IoU, square pixels

    defaults: ClassVar[Mapping[str, Any]] = {
        "fpn": {"p6_from": "p5", "relu_before_p7": True},
        "head": {
            "norm": "group",
            "norm_bias": True,
            "box_scales": True,
            "box_activation": "relu",
            "quality": "box",
        },
        "anchors": {"base_scale": 1.0, "octaves": 1, "ratios": (1.0,), "rounded": False},
        "coder": {"type": "distance", "order": "ltrb"},
        "postprocess": {"candidates": "pairs", "iou_threshold": 0.6},
    }

    def sum_boxes(self, boxes: Tensor, pos: Positives, central: Tensor) -> Tensor:
        distance = overlap_loss(self.box_loss, boxes, pos.boxes, self.eps)
        return pos.sum(distance * central * MILLION if self.weighted_boxes else distance)

    def count_terms(self, match: Tensor, pos: Positives, central: Tensor) -> dict[str, Tensor]:
        """The number of positive points, or the sum of the weights of their boxes."""
        count = (match >= 0).sum()
        boxes = pos.sum(central) * MILLION if self.weighted_boxes else count
        return {"loss_cls": count, "loss_box": boxes, "loss_quality": count}

    def match(self, anchors: Anchors, targets: Targets) -> Tensor:
        match = match_points(
            targets.boxes,
            anchors.boxes,
            anchors.lengths,
            reach=self.reach,
            radius=self.radius,
            inclusive=self.reach_inclusive,
            coarse_areas=self.coarse_areas,
        )
        return ignore_negatives(match, anchors, targets)
