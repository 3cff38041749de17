"""FreeAnchor: each object chooses its anchors out of a bag (Zhang et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.config import AnchorConfig
from sepc_zoo.methods.matching import inside_crowd
from sepc_zoo.methods.targets import Truth
from sepc_zoo.ops.boxes import anchor_chunks, box_iou
from sepc_zoo.ops.coders import decode_delta, encode_delta
from sepc_zoo.predictions import Predictions

DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class FreeAnchor:
    bag_size: int = 50  # anchors an object chooses from
    iou_threshold: float = 0.6  # of a predicted box that may mean an object
    alpha: float = 0.5  # weight of the positive term
    gamma: float = 2.0
    smooth_l1_beta: float = 0.11
    box_weight: float = 0.75

    anchors: ClassVar[AnchorConfig] = AnchorConfig()
    box_bias: ClassVar[float] = 0.0
    positive_deltas: ClassVar[bool] = False

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        return decode_delta(anchors, deltas, DELTA_SCALE)

    def loss_sums(
        self, predictions: Predictions, anchors: Tensor, truths: Sequence[Truth]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """``loss_positive_bag`` (eq. 7) and ``loss_negative_bag`` (eq. 8), and the number of bags.

        An image without boxes counts as one with a single bag, or its share would be huge.
        """
        logits, deltas, _ = predictions
        positive = logits.sum() * 0 + deltas.sum() * 0  # differentiable without any box
        negative = logits.new_zeros(())
        for image_logits, image_deltas, truth in zip(logits, deltas, truths, strict=True):
            prob = image_logits.sigmoid()
            positive = positive + self.positive_bag_loss(prob, image_deltas, anchors, truth)
            negative = negative + self.negative_bag_loss(prob, image_deltas, anchors, truth)

        bags = sum(max(1, len(truth.boxes)) for truth in truths)
        terms = {
            "loss_positive_bag": self.alpha * positive,
            "loss_negative_bag": (1 - self.alpha) / self.bag_size * negative,
        }
        return terms, torch.tensor(bags, device=logits.device)

    def positive_bag_loss(
        self, prob: Tensor, deltas: Tensor, anchors: Tensor, truth: Truth
    ) -> Tensor:
        """-log of the chance that some anchor of the bag finds each object, summed: ``()``."""
        if len(truth.boxes) == 0:
            return prob.new_zeros(())
        bags = nearest_anchors(truth.boxes, anchors, self.bag_size)  # G, n
        wanted = encode_delta(
            anchors[bags], truth.boxes[:, None].expand(*bags.shape, 4), DELTA_SCALE
        )
        distance = F.smooth_l1_loss(
            deltas[bags], wanted, reduction="none", beta=self.smooth_l1_beta
        )
        box_prob = (-self.box_weight * distance.sum(dim=2)).exp()
        bag_prob = mean_max(prob[bags, truth.labels[:, None]] * box_prob)
        return F.binary_cross_entropy(bag_prob, torch.ones_like(bag_prob), reduction="sum")

    def negative_bag_loss(
        self, prob: Tensor, deltas: Tensor, anchors: Tensor, truth: Truth
    ) -> Tensor:
        """Focal loss of each anchor for the classes it does not mean, summed: ``()``."""
        with torch.no_grad():
            boxes = self.decode(anchors, deltas)
            meant = self.object_prob(truth, boxes, num_classes=prob.shape[1])
            counted = 1 - meant
            counted[inside_crowd(truth.crowds, anchors)] = 0
        prob = prob * counted
        loss = F.binary_cross_entropy(prob, torch.zeros_like(prob), reduction="none")
        return (prob**self.gamma * loss).sum()

    def object_prob(self, truth: Truth, boxes: Tensor, num_classes: int) -> Tensor:
        """Chance that each predicted box means an object of each class, ``(A, 4) -> (A, K)``.

        Linear in the IoU from the threshold up to the best box of the object (section 3.3).
        """
        prob = boxes.new_zeros(len(boxes) * num_classes)
        if len(truth.boxes) == 0:
            return prob.view(-1, num_classes)
        best = boxes.new_full((len(truth.boxes),), self.iou_threshold + 1e-12)
        near = []
        for chunk in anchor_chunks(len(truth.boxes), len(boxes)):
            iou = box_iou(truth.boxes, boxes[chunk])  # G, a
            best = torch.maximum(best, iou.amax(dim=1))
            box, anchor = (iou > self.iou_threshold).nonzero(as_tuple=True)
            near.append((box, anchor + chunk.start, iou[box, anchor]))
        box, anchor, iou = (torch.cat(parts) for parts in zip(*near, strict=True))
        linear = ((iou - self.iou_threshold) / (best[box] - self.iou_threshold)).clamp(max=1)
        cell = anchor * num_classes + truth.labels[box]
        return prob.scatter_reduce(0, cell, linear, "amax").view(-1, num_classes)


def nearest_anchors(boxes: Tensor, anchors: Tensor, count: int) -> Tensor:
    """The ``count`` anchors of highest IoU with each box ``(G, 4), (A, 4) -> (G, count)``."""
    values = boxes.new_empty(len(boxes), 0)
    indices = torch.empty(len(boxes), 0, dtype=torch.long, device=boxes.device)
    for chunk in anchor_chunks(len(boxes), len(anchors)):
        iou = box_iou(boxes, anchors[chunk])
        top, index = iou.topk(min(count, iou.shape[1]), dim=1)
        values = torch.cat([values, top], dim=1)
        indices = torch.cat([indices, index + chunk.start], dim=1)
        values, best = values.topk(min(count, values.shape[1]), dim=1)
        indices = indices.gather(1, best)
    return indices


def mean_max(prob: Tensor) -> Tensor:
    """Soft maximum over a bag ``(G, n) -> (G,)``: the mean while all are poor, the max once one is
    good (FreeAnchor, eq. 5)."""
    weight = 1 / (1 - prob).clamp(min=1e-12)
    return (weight * prob).sum(dim=1) / weight.sum(dim=1)
