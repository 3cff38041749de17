"""FreeAnchor: each object chooses its anchors out of a bag (Zhang et al. 2019)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor

from sepc_zoo.config import Fraction, NonNegative
from sepc_zoo.methods.losses import background, flat_index, sum_background
from sepc_zoo.methods.matching import inside_crowd
from sepc_zoo.methods.method import Coder, Method
from sepc_zoo.ops.boxes import anchor_chunks, box_iou, table_chunks, table_rows
from sepc_zoo.ops.coders import decode, encode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms


class FreeAnchor(Method, frozen=True, tag="freeanchor"):
    bag_size: Annotated[int, Meta(ge=1, le=10**4)] = 50  # anchors that an object chooses from
    iou_threshold: Fraction = 0.6  # IoU from which a predicted box may mean an object
    alpha: Fraction = 0.5  # weight of the positive term
    gamma: NonNegative = 2.0
    smooth_l1_beta: NonNegative = 0.11
    box_weight: NonNegative = 0.75
    count_empty_images: bool = True  # whether an image without boxes counts as one with a bag

    defaults: ClassVar[Mapping[str, Any]] = {"coder": {"scale": (0.1, 0.1, 0.2, 0.2)}}
    lacks: ClassVar[Mapping[str, str]] = {
        "box_loss": "a bag's probability has exp(-smooth L1) of its boxes as a factor (eq. 7)",
        "label_smoothing": "classes are learned as the probability of a bag, which has no labels",
    }

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_positive_bag`` (eq. 7) over the number of bags, ``loss_negative_bag`` (eq. 8) over
        the number of their anchors.

        An image without boxes counts as one with a single bag, or its share would be huge.
        """
        logits, deltas = predictions.logits, predictions.deltas
        image, boxes, labels = targets.flat()  # B
        bags = nearest_anchors(boxes, anchors.boxes, self.bag_size)  # B, n
        with torch.no_grad():
            found = decode(coder, anchors.boxes, deltas)
            meant, prob = self.meant_cells(found, targets, logits.shape[2])  # M
            counted = ~inside_crowd(targets.crowds, anchors.boxes)  # N, A

        in_bags = flat_index(logits, image[:, None], bags, labels[:, None])
        picked = torch.cat([in_bags.flatten(), meant])
        negative, own = sum_background(logits, counted, self.gamma, picked)
        bag_logits, meant_logits = own.split([in_bags.numel(), len(meant)])

        wanted = encode(coder, anchors.boxes[bags], boxes[:, None].expand(-1, bags.shape[1], -1))
        positive = self.positive_bag_loss(
            bag_logits.view_as(bags), deltas[image[:, None], bags], wanted, targets.flat_weights()
        )
        # The sum took all as background; where a logit means an object, only the rest of it is.
        rest = partly_background(meant_logits, prob, self.gamma)
        rest = rest - background(meant_logits, self.gamma)
        in_crowd = ~counted.flatten()[meant // logits.shape[2]]
        negative = negative + rest.masked_fill(in_crowd, 0).sum()

        counts = self.counts(anchors, targets)
        return {
            "loss_positive_bag": (self.alpha * positive, counts["loss_positive_bag"]),
            "loss_negative_bag": ((1 - self.alpha) * negative, counts["loss_negative_bag"]),
        }

    def counts(self, anchors: Anchors, targets: Targets) -> dict[str, Tensor]:
        at_least = 1 if self.count_empty_images else 0
        count = sum(max(at_least, n) for n in targets.lengths)
        bags = torch.full((), count, device=anchors.boxes.device)
        return {"loss_positive_bag": bags, "loss_negative_bag": bags * self.bag_size}

    def positive_bag_loss(
        self, logits: Tensor, deltas: Tensor, wanted: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Sum ``()`` of -log of the probability that some anchor of its bag finds an object.

        Args:
            logits: logits of the object's class ``(B, n)``.
            deltas: predicted deltas ``(B, n, 4)``.
            wanted: target deltas of the object ``(B, n, 4)``.
            weights: weights of the objects ``(B,)``.
        """
        distance = F.smooth_l1_loss(deltas, wanted, reduction="none", beta=self.smooth_l1_beta)
        box_prob = (-self.box_weight * distance.sum(dim=2)).exp()
        bag_prob = mean_max(logits.sigmoid() * box_prob)
        return F.binary_cross_entropy(bag_prob, torch.ones_like(bag_prob), weights, reduction="sum")

    def meant_cells(
        self, found: Tensor, targets: Targets, num_classes: int
    ) -> tuple[Tensor, Tensor]:
        """Find the logits of predicted boxes ``(N, A, 4)`` that may mean an object of their class.

        Returns:
            Indices into the flattened ``(N, A, K)`` and the probability ``(M,)``, linear in the IoU
            from the threshold up to the best box of the object (section 3.3).
        """
        threshold = self.iou_threshold
        best = found.new_full(targets.labels.shape, threshold + 1e-12)  # N, G
        near = torch.zeros(found.shape[:2], dtype=torch.bool, device=found.device)  # N, A
        for chunk, iou, _ in table_chunks(box_iou, targets.boxes, found):
            best = torch.maximum(best, iou.amax(dim=2))
            near[:, chunk] = iou.amax(dim=1) > threshold
        image, anchor = near.nonzero(as_tuple=True)  # few; waits for a GPU

        meant = [(anchor[:0], best[0, :0])]
        for part in anchor_chunks(max(best.shape[1], num_classes), len(image), found.device):
            i, a = image[part], anchor[part]
            iou = box_iou(targets.boxes[i], found[i, a][:, None]).squeeze(2)  # R, G
            linear = ((iou - threshold) / (best[i] - threshold)).clamp(max=1)
            linear = linear.where(iou > threshold, 0)
            prob = linear.new_zeros(len(i), num_classes)
            prob = prob.scatter_reduce(1, targets.labels[i].clamp(min=0), linear, "amax")
            row, label = prob.nonzero(as_tuple=True)
            cell = (i[row] * found.shape[1] + a[row]) * num_classes + label
            meant.append((cell, prob[row, label]))
        cells, probs = zip(*meant, strict=True)
        return torch.cat(cells), torch.cat(probs)


def partly_background(logits: Tensor, meant: Tensor, gamma: float) -> Tensor:
    """``background`` of the part of the probability ``p`` that means no object, ``p (1 - meant)``.

    ``1 - p (1 - meant)`` is computed as ``(1 - p) + p meant``, which stays exact for p near 1.
    """
    prob = logits.sigmoid()
    rest = ((-logits).sigmoid() + prob * meant).log().clamp(min=-100)
    return -((prob * (1 - meant)) ** gamma) * rest


def nearest_anchors(boxes: Tensor, anchors: Tensor, count: int) -> Tensor:
    """Find the ``count`` anchors of highest IoU with each box, ``(G, 4), (A, 4) -> (G, count)``.

    Ties for the last places are broken as by ``topk`` of a box's IoU with all anchors.
    """
    count = min(count, len(anchors))
    bags = [iou.topk(count, dim=1).indices for iou in table_rows(box_iou, boxes, anchors)]
    return torch.cat([anchors.new_empty(0, count, dtype=torch.long), *bags])


def mean_max(prob: Tensor) -> Tensor:
    """Soft maximum over a bag ``(G, n) -> (G,)`` (FreeAnchor, eq. 5).

    It is near the mean while all values are low, and near the maximum once one is high.
    """
    weight = 1 / (1 - prob).clamp(min=1e-12)
    return (weight * prob).sum(dim=1) / weight.sum(dim=1)
