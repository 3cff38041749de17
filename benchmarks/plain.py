"""The original way to compute the models: the yardstick of the benchmarks.

It follows mmdetection 1.1 with SEPC: one deformable convolution per level, full tables of boxes x
anchors, dense targets, loops over images, levels, boxes and classes. It is new code that uses the
weights of our modules; the results are equal. Crowds are not supported.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import box_iou, nms, sigmoid_focal_loss

from sepc_zoo.config import DetectorConfig, PostprocessConfig
from sepc_zoo.methods.freeanchor import FreeAnchor
from sepc_zoo.methods.fsaf import FSAF
from sepc_zoo.methods.method import Coder
from sepc_zoo.methods.retinanet import RetinaNet
from sepc_zoo.models.necks.sepc import SEPC
from sepc_zoo.ops.coders import decode, encode
from sepc_zoo.outputs import Predictions

Target = Mapping[str, Tensor]  # boxes (G, 4), labels (G,)

BACKGROUND = -1  # label of an anchor
IGNORED = -2  # label of an anchor


class PlainSEPC(nn.Module):
    """The neck, level by level, with the weights of a ``SEPC``."""

    def __init__(self, neck: SEPC) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for pconv in self.neck.pconvs:
            out = []
            for i, x in enumerate(pyramid):
                y = level_conv(pconv.from_same, x, i)
                if i > 0:
                    y = y + level_conv(pconv.from_finer, pyramid[i - 1], i)
                if i + 1 < len(pyramid):
                    coarser = level_conv(pconv.from_coarser, pyramid[i + 1], i)
                    size = (y.shape[-2], y.shape[-1])
                    y = y + F.interpolate(coarser, size, mode="bilinear", align_corners=True)
                out.append(y)
            pyramid = joint_norm_relu(out, pconv.norm)
        branches = (self.neck.cls_branch, self.neck.box_branch)
        cls_pyramid, box_pyramid = (
            joint_norm_relu([level_conv(b.conv, x, i) for i, x in enumerate(pyramid)], b.norm)
            for b in branches
        )
        return cls_pyramid, box_pyramid


def level_conv(conv: nn.Conv2d, x: Tensor, level: int) -> Tensor:
    """A 3x3 convolution; with offsets it is deformed on all levels but the finest."""
    if conv.offset is None or level == 0:
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    offset = F.conv2d(x, conv.offset.weight, conv.offset.bias, conv.stride, conv.padding)
    return torchvision.ops.deform_conv2d(
        x, offset, conv.weight, conv.bias, conv.stride, conv.padding
    )


def joint_norm_relu(pyramid: list[Tensor], norm: nn.Module | None) -> list[Tensor]:
    """Batch norm over the concatenated levels, in eval mode too, and ReLU."""
    if norm is not None:
        joined = torch.cat([x.flatten(2) for x in pyramid], dim=2).unsqueeze(-1)
        levels = norm.norm(joined).squeeze(-1).split([x[0, 0].numel() for x in pyramid], dim=2)
        pyramid = [y.reshape(x.shape) for x, y in zip(pyramid, levels, strict=True)]
    return [F.relu(x) for x in pyramid]


def plain_loss(
    config: DetectorConfig, predictions: Predictions, anchors: Tensor, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Compute the loss terms of a method, as ``Detector.loss`` returns them."""
    losses: dict[type, Any] = {
        RetinaNet: retinanet_loss,
        FreeAnchor: freeanchor_loss,
        FSAF: fsaf_loss,
    }
    return losses[type(config.method)](config.method, config.coder, predictions, anchors, targets)


def retinanet_loss(
    method: RetinaNet,
    coder: Coder,
    predictions: Predictions,
    anchors: Tensor,
    targets: Sequence[Target],
) -> dict[str, Tensor]:
    labels, box_targets = [], []
    count = 0
    for target in targets:
        match = assign_by_iou(target["boxes"], anchors, method.positive_iou, method.negative_iou)
        positive = match >= 0
        image_labels = match.clone()
        image_labels[positive] = target["labels"][match[positive]]
        image_targets = torch.zeros_like(anchors)
        image_targets[positive] = encode(coder, anchors[positive], target["boxes"][match[positive]])
        labels.append(image_labels)
        box_targets.append(image_targets)
        count += max(1, int(positive.sum()))

    loss_cls, loss_box = [], []
    for level_logits, level_deltas, level_labels, level_targets in levels_of(
        predictions, torch.stack(labels), torch.stack(box_targets)
    ):
        loss_cls.append(dense_focal_loss(level_logits, level_labels).sum() / count)
        distance = F.smooth_l1_loss(
            level_deltas, level_targets, reduction="none", beta=method.smooth_l1_beta
        )
        loss_box.append((distance * (level_labels >= 0)[:, None]).sum() / count)
    return {"loss_cls": sum(loss_cls), "loss_box": sum(loss_box)}


def assign_by_iou(boxes: Tensor, anchors: Tensor, positive: float, negative: float) -> Tensor:
    """Match each anchor ``(A,)`` to a box, BACKGROUND or IGNORED, with a loop over boxes."""
    match = anchors.new_full((len(anchors),), IGNORED, dtype=torch.long)
    if len(boxes) == 0:
        return match.fill_(BACKGROUND)
    iou = box_iou(boxes, anchors)  # G, A
    best, index = iou.max(dim=0)
    best_of_box, _ = iou.max(dim=1)
    match[best < negative] = BACKGROUND
    match[best >= positive] = index[best >= positive]
    for box in range(len(boxes)):
        if best_of_box[box] > 0:
            match[iou[box] == best_of_box[box]] = box
    return match


def levels_of(predictions: Predictions, *of_anchors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split into levels: ``logits (N * A, K)``, ``deltas (N * A, 4)``, and further columns."""
    logits, deltas = predictions.logits, predictions.deltas
    lengths = predictions.level_lengths
    levels = zip(*(x.split(lengths, dim=1) for x in (logits, deltas, *of_anchors)), strict=True)
    return [tuple(x.flatten(0, 1) for x in level) for level in levels]


def dense_focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss ``(A, K)`` with a dense target; 0 where an anchor is ignored."""
    positive = labels >= 0
    targets = torch.zeros_like(logits)
    targets[positive, labels[positive]] = 1
    return sigmoid_focal_loss(logits, targets) * (labels != IGNORED)[:, None]


def freeanchor_loss(
    method: FreeAnchor,
    coder: Coder,
    predictions: Predictions,
    anchors: Tensor,
    targets: Sequence[Target],
) -> dict[str, Tensor]:
    prob = predictions.logits.sigmoid()  # N, A, K
    bags, positive, object_probs = 0, [], []
    for image_prob, deltas, target in zip(prob, predictions.deltas, targets, strict=True):
        bags += max(1, len(target["boxes"]))
        with torch.no_grad():
            object_probs.append(
                object_prob(method, coder, deltas, anchors, target, image_prob.shape[1])
            )
        if len(target["boxes"]) == 0:
            continue
        bag = box_iou(target["boxes"], anchors).topk(method.bag_size, dim=1).indices  # G, n
        labels = target["labels"][:, None, None].expand(-1, method.bag_size, 1)
        class_prob = image_prob[bag].gather(2, labels).squeeze(2)
        box_targets = encode(coder, anchors[bag], target["boxes"][:, None].expand(*bag.shape, 4))
        distance = F.smooth_l1_loss(
            deltas[bag], box_targets, reduction="none", beta=method.smooth_l1_beta
        )
        found = class_prob * torch.exp(-method.box_weight * distance.sum(dim=2))
        weight = 1 / (1 - found).clamp(min=1e-12)
        weight = weight / weight.sum(dim=1, keepdim=True)
        bag_probs = (weight * found).sum(dim=1)
        positive.append(
            F.binary_cross_entropy(bag_probs, torch.ones_like(bag_probs), reduction="none")
        )
    wrong = prob * (1 - torch.stack(object_probs))
    negative = wrong**method.gamma * F.binary_cross_entropy(
        wrong, torch.zeros_like(wrong), reduction="none"
    )
    bag_probs = torch.cat(positive) if positive else 0 * predictions.deltas
    return {
        "loss_positive_bag": method.alpha * bag_probs.sum() / bags,
        "loss_negative_bag": (1 - method.alpha) * negative.sum() / (bags * method.bag_size),
    }


def object_prob(
    method: FreeAnchor,
    coder: Coder,
    deltas: Tensor,
    anchors: Tensor,
    target: Target,
    num_classes: int,
) -> Tensor:
    """Probability that a predicted box is an object of a class, dense ``(A, K)``."""
    if len(target["boxes"]) == 0:
        return deltas.new_zeros(len(anchors), num_classes)
    iou = box_iou(target["boxes"], decode(coder, anchors, deltas))  # G, A
    threshold = method.iou_threshold
    best = iou.max(dim=1, keepdim=True).values.clamp(min=threshold + 1e-12)
    linear = ((iou - threshold) / (best - threshold)).clamp(min=0, max=1)

    place = torch.stack([torch.arange(len(target["labels"]), device=iou.device), target["labels"]])
    size = (len(iou), num_classes, len(anchors))
    by_box = torch.sparse_coo_tensor(place, linear, size, check_invariants=False)
    by_class = torch.sparse.sum(by_box, dim=0).to_dense()  # K, A
    label, anchor = by_class.nonzero(as_tuple=True)
    if len(label) == 0:
        return by_class.T
    of_class = target["labels"][:, None] == label  # G, cells with an object
    largest = torch.where(of_class, linear[:, anchor], 0).max(dim=0).values
    cells = torch.stack([anchor, label])
    size = (len(anchors), num_classes)
    return torch.sparse_coo_tensor(cells, largest, size, check_invariants=False).to_dense()


def fsaf_loss(
    method: FSAF,
    coder: Coder,
    predictions: Predictions,
    anchors: Tensor,
    targets: Sequence[Target],
) -> dict[str, Tensor]:
    boxes_so_far = 0
    labels, box_targets, owners = [], [], []
    for target in targets:
        match = assign_by_center(target["boxes"], anchors, method)
        positive = match >= 0
        image_labels = match.clone()
        image_labels[positive] = target["labels"][match[positive]]
        image_targets = torch.zeros_like(anchors)
        image_targets[positive] = encode(coder, anchors[positive], target["boxes"][match[positive]])
        labels.append(image_labels)
        box_targets.append(image_targets)
        owners.append(torch.where(positive, match + boxes_so_far, BACKGROUND))
        boxes_so_far += len(target["boxes"])

    levels = levels_of(
        predictions, torch.stack(labels), torch.stack(box_targets), torch.stack(owners)
    )
    of_classes, of_boxes, mean_losses = [], [], []
    for level_logits, level_deltas, level_labels, level_targets, owner in levels:
        of_class = dense_focal_loss(level_logits, level_labels)
        of_box = dense_iou_loss(level_deltas, level_targets) * (level_labels >= 0)
        of_classes.append(of_class)
        of_boxes.append(of_box)
        with torch.no_grad():
            total = of_class.sum(dim=1) + of_box
            mean_loss = total.new_full((boxes_so_far,), 1e6)
            for box in range(boxes_so_far):
                mine = owner == box
                if mine.any():
                    mean_loss[box] = total[mine].mean()
            mean_losses.append(mean_loss)
    best = torch.stack(mean_losses).min(dim=0).indices  # of each box

    count, loss_cls, loss_box = 0, [], []
    for i, (_, _, level_labels, _, owner) in enumerate(levels):
        positive = (owner >= 0).nonzero().squeeze(1)
        lost = positive[best[owner[positive]] != i]
        weight = torch.ones_like(of_classes[i])
        weight[lost, level_labels[lost]] = 0
        chosen = owner >= 0
        chosen[lost] = False
        loss_cls.append((of_classes[i] * weight).sum())
        loss_box.append((of_boxes[i] * chosen).sum())
        count += int(chosen.sum())
    count = max(count, 1)
    return {"loss_cls": sum(loss_cls) / count, "loss_box": sum(loss_box) / count}


def assign_by_center(boxes: Tensor, anchors: Tensor, method: FSAF) -> Tensor:
    """Match each cell ``(A,)`` to the smallest box around it, BACKGROUND or IGNORED."""
    match = anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.long)
    if len(boxes) == 0:
        return match
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    lower, upper = middle - method.central * half, middle + method.central * half
    overlap = torch.minimum(upper[:, None], anchors[None, :, 2:]) - torch.maximum(
        lower[:, None], anchors[None, :, :2]
    )  # G, A, 2
    cell_area = (anchors[:, 2:] - anchors[:, :2]).prod(dim=1)
    covered = overlap.clamp(min=0).prod(dim=2) / cell_area > method.min_cover
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = (centers > boxes[:, None, :2]) & (centers < boxes[:, None, 2:] - 1)
    positive = covered & inside.all(dim=2)
    match[(covered & ~positive).any(dim=0)] = IGNORED
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    smallest, index = torch.where(positive, area[:, None], torch.inf).min(dim=0)
    match[smallest < torch.inf] = index[smallest < torch.inf]
    return match


def dense_iou_loss(found: Tensor, box_targets: Tensor) -> Tensor:
    """-log IoU of distances to the four sides, ``(A, 4) -> (A,)``."""
    found_area = (found[:, 0] + found[:, 1]) * (found[:, 2] + found[:, 3])
    box_targets_area = (box_targets[:, 0] + box_targets[:, 1]) * (
        box_targets[:, 2] + box_targets[:, 3]
    )
    height = torch.minimum(found[:, :2], box_targets[:, :2]).sum(dim=1)
    width = torch.minimum(found[:, 2:], box_targets[:, 2:]).sum(dim=1)
    overlap = height * width
    union = (found_area + box_targets_area - overlap).clamp(min=1)
    return -(overlap / union).clamp(min=1e-6).log()


@torch.no_grad()
def plain_postprocess(
    predictions: Predictions,
    anchors: Tensor,
    decode: Callable[[Tensor, Tensor], Tensor],
    image_sizes: Sequence[tuple[int, int]],
    config: PostprocessConfig,
) -> list[dict[str, Tensor]]:
    """Select detections image by image, level by level, class by class."""
    lengths = predictions.level_lengths
    found = []
    for logits, deltas, (height, width) in zip(
        predictions.logits, predictions.deltas, image_sizes, strict=True
    ):
        scores, boxes = [], []
        for level_logits, level_deltas, level_anchors in zip(
            logits.split(lengths), deltas.split(lengths), anchors.split(lengths), strict=True
        ):
            level_scores = level_logits.sigmoid()
            best = level_scores.max(dim=1).values
            top = best.topk(min(config.candidates_per_level, len(best))).indices
            level_boxes = decode(level_anchors[top], level_deltas[top])
            level_boxes[:, 0::2] = level_boxes[:, 0::2].clamp(0, width)
            level_boxes[:, 1::2] = level_boxes[:, 1::2].clamp(0, height)
            scores.append(level_scores[top])
            boxes.append(level_boxes)
        found.append(nms_by_class(torch.cat(boxes), torch.cat(scores), config))
    return found


def nms_by_class(boxes: Tensor, scores: Tensor, config: PostprocessConfig) -> dict[str, Tensor]:
    """Apply NMS class by class, then keep the best: ``boxes (C, 4)``, ``scores (C, K)``."""
    kept_boxes, kept_scores, kept_labels = [boxes[:0]], [scores[:0, 0]], []
    for label in range(scores.shape[1]):
        chosen = scores[:, label] > config.score_threshold
        if not chosen.any():
            continue
        class_boxes, class_scores = boxes[chosen], scores[chosen, label]
        kept = nms(class_boxes, class_scores, config.iou_threshold)
        kept_boxes.append(class_boxes[kept])
        kept_scores.append(class_scores[kept])
        kept_labels += [label] * len(kept)
    all_scores, labels = torch.cat(kept_scores), torch.tensor(kept_labels, device=boxes.device)
    order = all_scores.argsort(descending=True)[: config.max_detections]
    return {
        "boxes": torch.cat(kept_boxes)[order],
        "scores": all_scores[order],
        "labels": labels.long()[order],
    }
