"""Faster R-CNN: regions are proposed, sampled and classified (Ren et al. 2015, with an FPN)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from msgspec import Meta
from msgspec.structs import replace
from torch import Tensor

from sepc_zoo.config import (
    DeltaCoder,
    DetectorConfig,
    Entry,
    Fraction,
    MethodConfig,
    NeckConfig,
    NonNegative,
    SEPCNeck,
)
from sepc_zoo.errors import ConfigError
from sepc_zoo.methods.box_losses import OverlapLoss, overlap_loss
from sepc_zoo.methods.matching import IGNORE, LowQuality, inside_crowd, match_by_iou
from sepc_zoo.methods.sampling import sample
from sepc_zoo.ops.coders import decode, encode
from sepc_zoo.outputs import Anchors, Targets, Terms, TwoStagePredictions

SampleSize = Annotated[int, Meta(ge=1, le=10**6)]


class FasterRCNN(Entry, MethodConfig, frozen=True, tag="fasterrcnn"):
    rpn_positive_iou: Fraction = 0.7
    rpn_negative_iou: Fraction = 0.3
    rpn_low_quality: LowQuality = "claimed"  # see match_by_iou
    rpn_samples: SampleSize = 256  # anchors of an image that the RPN learns from
    rpn_positive_fraction: Fraction = 0.5  # maximal share of positives
    roi_positive_iou: Fraction = 0.5
    roi_samples: SampleSize = 512  # regions of an image that the second head learns from
    roi_positive_fraction: Fraction = 0.25  # maximal share of positives
    label_smoothing: Fraction = 0.0  # of a region's class among all, the background too
    box_loss: Literal["smooth_l1"] | OverlapLoss = "smooth_l1"  # of regions; the RPN has smooth L1
    box_weight: NonNegative = 1.0  # of regions; openmmlab has 10 where the loss is of overlaps
    smooth_l1_beta: NonNegative = 1 / 9

    detector: ClassVar[Any] = "sepc_zoo.models.two_stage:TwoStageDetector"
    head: ClassVar[str] = "two_stage"
    defaults: ClassVar[Mapping[str, Any]] = {
        "fpn": {"levels": (2, 6), "p6_from": "pool"},
        "head": {"type": "two_stage"},
        "anchors": {"base_scale": 8.0, "octaves": 1},
    }

    @classmethod
    def fit_neck(cls, neck: NeckConfig) -> NeckConfig | None:
        """One pyramid for both heads: without branches, and not deformable.

        A single pyramid convolution on P2 … P6 costs more than four on P3 … P7.
        """
        if not isinstance(neck, SEPCNeck):
            return neck
        deformable = neck.head_deform or neck.pconv_deform
        return None if deformable else replace(neck, blocks=1, branches=False)

    def check(self, config: DetectorConfig) -> None:
        if not isinstance(config.coder, DeltaCoder):
            raise ConfigError("coder.type: fasterrcnn has 'delta'")

    def loss(
        self,
        predictions: TwoStagePredictions,
        anchors: Anchors,
        targets: Targets,
        coder: DeltaCoder,
        roi_coder: DeltaCoder,
    ) -> Terms:
        """Differentiable sums over the images of this process, and the counts to divide them by.

        Args:
            coder: codes boxes for the RPN.
            roi_coder: codes boxes for the second head.
        """
        return {
            **self.rpn_loss(predictions, anchors.boxes, targets, coder),
            **self.roi_loss(predictions, targets, roi_coder),
        }

    def rpn_loss(
        self, predictions: TwoStagePredictions, anchors: Tensor, targets: Targets, coder: DeltaCoder
    ) -> Terms:
        """``loss_rpn_cls`` and ``loss_rpn_box``, over the anchors sampled (section 3.1.2)."""
        match = self.match_anchors(anchors, targets)  # N, A
        index, drawn = sample(match, self.rpn_samples, self.rpn_positive_fraction)  # N, S
        match, anchors = match.gather(1, index), anchors[index]
        logits = predictions.rpn_logits.gather(1, index)
        deltas = take(predictions.rpn_deltas, index)

        positive = drawn & (match >= 0)
        is_object = positive.to(logits.dtype)
        loss_cls = F.binary_cross_entropy_with_logits(logits, is_object, reduction="none")
        loss_box = self.box_distance("smooth_l1", deltas, anchors, match, positive, targets, coder)
        count = drawn.sum()
        return {
            "loss_rpn_cls": (loss_cls.masked_fill(~drawn, 0).sum(), count),
            "loss_rpn_box": (loss_box, count),
        }

    def roi_loss(
        self, predictions: TwoStagePredictions, targets: Targets, coder: DeltaCoder
    ) -> Terms:
        """``loss_cls`` and ``loss_box``, over the regions sampled (Fast R-CNN, section 2.3)."""
        match = self.match_regions(predictions.regions, targets)  # N, R
        positive, counted = match >= 0, match != IGNORE
        labels = targets.labels.gather(1, match.clamp(min=0))
        labels = labels.masked_fill(~positive, -1) + 1  # N, R; background is 0
        loss_cls = F.cross_entropy(
            predictions.logits.mT, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        if targets.weights is not None:
            weights = targets.weights.gather(1, match.clamp(min=0))
            loss_cls = loss_cls * weights.where(positive, 1)

        own = (labels - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
        deltas = predictions.deltas.gather(2, own).squeeze(2)  # N, R, 4
        loss_box = self.box_weight * self.box_distance(
            self.box_loss, deltas, predictions.regions, match, positive, targets, coder
        )
        count = counted.sum()
        return {
            "loss_cls": (loss_cls.masked_fill(~counted, 0).sum(), count),
            "loss_box": (loss_box, count),
        }

    def box_distance(
        self,
        kind: Literal["smooth_l1"] | OverlapLoss,
        deltas: Tensor,
        anchors: Tensor,
        match: Tensor,
        positive: Tensor,
        targets: Targets,
        coder: DeltaCoder,
    ) -> Tensor:
        """Sum the box losses of the positive anchors or regions: ``()``."""
        boxes = take(targets.boxes, match.clamp(min=0))  # N, S, 4
        unit = torch.tensor([0.0, 0.0, 1.0, 1.0]).to(anchors)
        real = positive[..., None]
        anchors, boxes = anchors.where(real, unit), boxes.where(real, unit)
        if kind == "smooth_l1":
            wanted = encode(coder, anchors, boxes)
            distance = F.smooth_l1_loss(deltas, wanted, reduction="none", beta=self.smooth_l1_beta)
        else:
            distance = overlap_loss(kind, decode(coder, anchors, deltas), boxes)[..., None]
        return distance.masked_fill(~real, 0).sum()

    def match_anchors(self, anchors: Tensor, targets: Targets) -> Tensor:
        """Index of the box of each anchor ``(N, A)``, NEGATIVE or IGNORE."""
        match = match_by_iou(
            targets.boxes,
            anchors,
            self.rpn_positive_iou,
            self.rpn_negative_iou,
            low_quality=self.rpn_low_quality,
        )
        return match.masked_fill((match < 0) & inside_crowd(targets.crowds, anchors), IGNORE)

    def match_regions(self, regions: Tensor, targets: Targets) -> Tensor:
        """Index of the box of each region ``(N, R)``, NEGATIVE or IGNORE."""
        iou = self.roi_positive_iou
        match = match_by_iou(targets.boxes, regions, iou, iou, low_quality="none")
        ignored = (match < 0) & inside_crowd(targets.crowds, regions)
        ignored |= (regions[..., 2:] <= regions[..., :2]).any(dim=-1)
        return match.masked_fill(ignored, IGNORE)

    @torch.no_grad()
    def sample_regions(self, proposals: Tensor, targets: Targets) -> Tensor:
        """Sample the regions to learn from proposals and ground-truth boxes, ``(N, R, 4)``.

        An image with too few of them gets regions without area.
        """
        candidates = torch.cat([targets.boxes, proposals], dim=1)
        match = self.match_regions(candidates, targets)
        index, drawn = sample(match, self.roi_samples, self.roi_positive_fraction)
        return take(candidates, index).masked_fill(~drawn[..., None], 0)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Take rows of each image by index, ``(N, A, V), (N, S) -> (N, S, V)``."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
