"""FreeAnchor: each object chooses its anchors out of a bag (Zhang et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sepc_zoo.config import AnchorConfig
from sepc_zoo.methods.losses import background, flat_index, sum_background
from sepc_zoo.methods.matching import inside_crowd
from sepc_zoo.methods.targets import Truth, Truths, pad_truths
from sepc_zoo.ops.boxes import anchor_chunks, box_iou, table_chunks, table_rows
from sepc_zoo.ops.coders import decode_delta, encode_delta
from sepc_zoo.outputs import Predictions

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
        images = pad_truths(truths)
        boxes = torch.cat([truth.boxes for truth in truths])  # B, of all images
        labels = torch.cat([truth.labels for truth in truths])
        image = torch.cat([torch.full_like(t.labels, i) for i, t in enumerate(truths)])[:, None]
        bags = nearest_anchors(boxes, anchors, self.bag_size)  # B, n
        with torch.no_grad():
            found = self.decode(anchors, deltas)
            meant, prob = self.meant_cells(found, images, logits.shape[2])  # M
            counted = ~inside_crowd(images.crowds, anchors)  # N, A

        in_bags = flat_index(logits, image, bags, labels[:, None])
        picked = torch.cat([in_bags.flatten(), meant])
        negative, own = sum_background(logits, counted, self.gamma, picked)
        of_bags, of_meant = own.split([in_bags.numel(), len(meant)])

        positive = self.positive_bag_loss(
            of_bags.view_as(bags), deltas[image, bags], anchors[bags], boxes
        )
        # The sum took all as background; what means an object to some part is so to the rest.
        rest = partly_background(of_meant, prob, self.gamma) - background(of_meant, self.gamma)
        in_crowd = ~counted.flatten()[meant // logits.shape[2]]
        negative = negative + rest.masked_fill(in_crowd, 0).sum()

        count = sum(max(1, len(truth.boxes)) for truth in truths)
        terms = {
            "loss_positive_bag": self.alpha * positive,
            "loss_negative_bag": (1 - self.alpha) / self.bag_size * negative,
        }
        return terms, torch.full((), count, device=logits.device)

    def positive_bag_loss(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, boxes: Tensor
    ) -> Tensor:
        """-log of the chance that some anchor of the bag finds each object, summed: ``()``.

        Args:
            logits: of the object's class ``(B, n)``; deltas and anchors are ``(B, n, 4)``.
        """
        wanted = encode_delta(anchors, boxes[:, None].expand_as(anchors), DELTA_SCALE)
        distance = F.smooth_l1_loss(deltas, wanted, reduction="none", beta=self.smooth_l1_beta)
        box_prob = (-self.box_weight * distance.sum(dim=2)).exp()
        bag_prob = mean_max(logits.sigmoid() * box_prob)
        return F.binary_cross_entropy(bag_prob, torch.ones_like(bag_prob), reduction="sum")

    def meant_cells(self, found: Tensor, truths: Truths, num_classes: int) -> tuple[Tensor, Tensor]:
        """Where the boxes found ``(N, A, 4)`` may mean an object of a class.

        Returns:
            Places in the flattened ``(N, A, K)`` and the chance ``(M,)``, linear in the IoU from
            the threshold up to the best box of the object (section 3.3).
        """
        threshold = self.iou_threshold
        best = found.new_full(truths.labels.shape, threshold + 1e-12)  # N, G
        near = torch.zeros(found.shape[:2], dtype=torch.bool, device=found.device)  # N, A
        for chunk, iou, _ in table_chunks(box_iou, truths.boxes, found):
            best = torch.maximum(best, iou.amax(dim=2))
            near[:, chunk] = iou.amax(dim=1) > threshold
        image, anchor = near.nonzero(as_tuple=True)  # few; a GPU is waited for here

        meant = [(anchor[:0], best[0, :0])]
        for part in anchor_chunks(max(best.shape[1], num_classes), len(image), found.device):
            i, a = image[part], anchor[part]
            iou = box_iou(truths.boxes[i], found[i, a][:, None]).squeeze(2)  # R, G
            linear = ((iou - threshold) / (best[i] - threshold)).clamp(max=1)
            linear = linear.where(iou > threshold, 0)
            prob = linear.new_zeros(len(i), num_classes)
            prob = prob.scatter_reduce(1, truths.labels[i].clamp(min=0), linear, "amax")
            row, label = prob.nonzero(as_tuple=True)
            cell = (i[row] * found.shape[1] + a[row]) * num_classes + label
            meant.append((cell, prob[row, label]))
        cells, probs = zip(*meant, strict=True)
        return torch.cat(cells), torch.cat(probs)


def partly_background(logits: Tensor, meant: Tensor, gamma: float) -> Tensor:
    """``background`` of the part of the probability ``p`` that means no object, ``p (1 - meant)``.

    1 - p (1 - meant) is taken apart, so that it is exact for a certain p.
    """
    prob = logits.sigmoid()
    rest = ((-logits).sigmoid() + prob * meant).log().clamp(min=-100)
    return -((prob * (1 - meant)) ** gamma) * rest


def nearest_anchors(boxes: Tensor, anchors: Tensor, count: int) -> Tensor:
    """The ``count`` anchors of highest IoU with each box ``(G, 4), (A, 4) -> (G, count)``.

    Of those that tie for the last places, the same as by ``topk`` of a box's IoU with all anchors.
    """
    count = min(count, len(anchors))
    bags = [iou.topk(count, dim=1).indices for iou in table_rows(box_iou, boxes, anchors)]
    return torch.cat([anchors.new_empty(0, count, dtype=torch.long), *bags])


def mean_max(prob: Tensor) -> Tensor:
    """Soft maximum over a bag ``(G, n) -> (G,)``: the mean while all are poor, the max once one is
    good (FreeAnchor, eq. 5)."""
    weight = 1 / (1 - prob).clamp(min=1e-12)
    return (weight * prob).sum(dim=1) / weight.sum(dim=1)
