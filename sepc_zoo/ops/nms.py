"""From predictions to detections, for a whole batch at once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from sepc_zoo.config import PostprocessConfig
from sepc_zoo.ops.boxes import clip_boxes, paired_iou
from sepc_zoo.ops.devices import counting_is_free, to_device
from sepc_zoo.outputs import Predictions, TwoStagePredictions

MIN_SOFT_SCORE = 1e-3  # boxes with less after soft-NMS are dropped, as in its authors' code


@torch.no_grad()
def select_detections(
    predictions: Predictions,
    anchors: Tensor,
    decode: Callable[[Tensor, Tensor], Tensor],
    image_sizes: Sequence[tuple[int, int]],
    config: PostprocessConfig,
    border: float = 0.0,
) -> list[dict[str, Tensor]]:
    """Class-wise non-maximum suppression of the best candidates of each level.

    Args:
        anchors: ``(A, 4)``.
        decode: function from anchors and deltas to boxes, ``(R, 4), (R, V) -> (R, 4)``.
        image_sizes: height and width of each image inside the batch; boxes are clipped to it.
        border: smallest part of a box inside the image in pixels, see ``clip_boxes``.

    Returns:
        For each image ``boxes (D, 4)``, ``scores (D,)`` and ``labels (D,)`` by falling score.
    """
    logits, deltas = predictions.logits, predictions.deltas
    images, num_anchors, num_classes = logits.shape
    if len(image_sizes) != images:
        raise ValueError(f"{len(image_sizes)} image_sizes for {images} images")
    rows, level = _candidates(predictions, config)  # R, of all images
    image, anchor = rows // num_anchors, rows % num_anchors
    scores = logits.flatten(0, 1).index_select(0, rows).sigmoid_()  # R, K
    quality = None if predictions.quality is None else predictions.quality.flatten()[rows].sigmoid()
    if quality is not None and config.quality == "root":
        scores.mul_(quality[:, None]).sqrt_()
    boxes = decode(anchors[anchor], deltas.flatten(0, 1)[rows])
    limits = to_device(torch.tensor(image_sizes), boxes.device)
    boxes = clip_boxes(boxes[:, None], limits[image], border).squeeze(1)

    # On a GPU the next line waits, and so does copying the counts; nothing before does.
    row, label = (scores > config.score_threshold).nonzero(as_tuple=True)
    scores = scores[row, label]
    if config.candidates == "pairs":
        group = image[row] * len(predictions.sizes) + level[row]
        best = _best_of_groups(scores, group, config.candidates_per_level)
        row, label, scores = row[best], label[best], scores[best]
    if quality is not None and config.quality == "factor":
        scores = scores * quality[row]
    if not config.empty_boxes:
        has_area = (boxes[row, 2:] > boxes[row, :2]).all(dim=1)
        row, label, scores = row[has_area], label[has_area], scores[has_area]
    image, boxes = image[row], boxes[row]
    keep, scores = best_boxes(boxes, scores, image * num_classes + label, config)
    found = best_of_images(keep, image, images, config.max_detections)
    return [{"boxes": boxes[d], "scores": scores[d], "labels": label[d]} for d in found]


@torch.no_grad()
def select_region_detections(
    predictions: TwoStagePredictions,
    decode: Callable[[Tensor, Tensor], Tensor],
    image_sizes: Sequence[tuple[int, int]],
    config: PostprocessConfig,
    min_side: float,
) -> list[dict[str, Tensor]]:
    """Class-wise non-maximum suppression of the boxes of all regions.

    Args:
        decode: function from regions and deltas to boxes, all ``(D, 4)``.
        image_sizes: height and width of each image inside the batch; boxes are clipped to it.
        min_side: sides of a detection, pixels.

    Returns:
        For each image ``boxes (D, 4)``, ``scores (D,)`` and ``labels (D,)`` by falling score.
    """
    regions, deltas = predictions.regions, predictions.deltas
    images, _, num_classes = deltas.shape[:3]
    if len(image_sizes) != images:
        raise ValueError(f"{len(image_sizes)} image_sizes for {images} images")
    scores = predictions.logits.softmax(dim=-1)[..., 1 : 1 + num_classes]  # N, R, K
    scores = scores.masked_fill(~predictions.exists[..., None], -1)
    image, region, label = (scores > config.score_threshold).nonzero(as_tuple=True)
    scores = scores[image, region, label]
    boxes = decode(regions[image, region], deltas[image, region, label])
    limits = to_device(torch.tensor(image_sizes), boxes.device)
    boxes = clip_boxes(boxes[:, None], limits[image]).squeeze(1)
    large = (boxes[:, 2:] - boxes[:, :2] >= min_side).all(dim=1)
    image, label, boxes, scores = image[large], label[large], boxes[large], scores[large]
    keep, scores = best_boxes(boxes, scores, image * num_classes + label, config)
    found = best_of_images(keep, image, images, config.max_detections)
    return [{"boxes": boxes[d], "scores": scores[d], "labels": label[d]} for d in found]


def best_of_images(keep: Tensor, image: Tensor, images: int, limit: int) -> list[Tensor]:
    """The first ``limit`` of the indices ``keep`` of each image.

    Args:
        keep: indices ``(D,)`` in order of preference.
        image: the image of each candidate; ``keep`` counts these.
    """
    image = image[keep]
    counts = image.bincount(minlength=images).tolist()
    by_image = keep[image.argsort(stable=True)].split(counts)
    return [kept[:limit] for kept in by_image]


def _best_of_groups(scores: Tensor, group: Tensor, limit: int) -> Tensor:
    """Indices of the ``limit`` highest scores of each group, or all of a smaller one."""
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    members = group[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(members, members)
    return order[rank < limit]


def best_boxes(
    boxes: Tensor, scores: Tensor, group: Tensor, config: PostprocessConfig
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression, hard or soft as the config says; a group is a class of an image.

    Returns:
        Indices of the boxes kept, by falling score, and the scores of all boxes.
    """
    if config.soft_nms == "none":
        return suppress(boxes, scores, group, config.iou_threshold), scores
    return suppress_softly(boxes, scores, group, config)


def suppress_softly(
    boxes: Tensor, scores: Tensor, group: Tensor, config: PostprocessConfig
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017, figure 2) of all groups at once; see ``best_boxes``.

    Each step takes the best remaining box of each group. These scores fall from step to step, so
    that no group needs more than ``max_detections`` steps. Each step waits for a GPU.
    """
    final, place = torch.zeros_like(scores), torch.arange(len(boxes), device=boxes.device)
    group = group.unique(return_inverse=True)[1]
    num_groups = int(group.max()) + 1 if len(group) else 0
    for _ in range(config.max_detections):
        left = scores > MIN_SOFT_SCORE
        boxes, scores, group, place = boxes[left], scores[left], group[left], place[left]
        count = len(scores)
        if not count:
            break
        best = scores.new_zeros(num_groups).scatter_reduce(0, group, scores, "amax")
        index = torch.arange(count, device=boxes.device)
        candidate = index.where(scores == best[group], count)
        first = candidate.new_full((num_groups,), count).scatter_reduce(0, group, candidate, "amin")
        winner = first[group]  # index of the best box of each box's group; the first of equal ones
        is_winner = winner == index
        final[place[is_winner]] = scores[is_winner]
        iou = paired_iou(boxes, boxes[winner])
        if config.soft_nms == "linear":
            decay = (1 - iou).where(iou > config.iou_threshold, 1)
        else:
            decay = (-iou.square() / config.soft_nms_sigma).exp()
        scores = (scores * decay).masked_fill(is_winner, 0)
    keep = final.nonzero().squeeze(1)
    return keep[final[keep].argsort(descending=True, stable=True)], final


def fuse_boxes(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_views: int, iou_threshold: float
) -> dict[str, Tensor]:
    """Weighted boxes fusion (Solovyev et al. 2021, section 3) of an image, on the CPU.

    By falling score, each box joins the cluster of its class whose fused box overlaps it most, or
    starts a cluster. A fused box is the mean of its boxes, weighted by scores; its score is their
    mean, times the share of the views that found it.

    Returns:
        ``boxes``, ``scores`` and ``labels`` of the fused boxes, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    labels = labels[order]
    # Many small steps: numpy takes a seventh of torch's time.
    fused = boxes[order].double().numpy()
    totals, counts = scores[order].double().numpy(), np.ones(len(order))
    for of_class in [(labels == label).nonzero().flatten().numpy() for label in labels.unique()]:
        clusters = of_class[:0]  # places of their first boxes
        for i in of_class:
            iou = _iou_with(fused[clusters], fused[i])
            best = iou.argmax() if len(iou) else 0
            if not len(iou) or iou[best] <= iou_threshold:
                clusters = np.append(clusters, i)
                continue
            first, total = clusters[best], totals[clusters[best]] + totals[i]
            fused[first] += (fused[i] - fused[first]) * (totals[i] / total)
            totals[first] = total
            counts[first] += 1
            counts[i] = 0
    share = np.minimum(counts, num_views) / num_views
    fused_scores = torch.from_numpy(totals / np.maximum(counts, 1) * share).to(scores)
    order = fused_scores.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    found = torch.from_numpy(fused).to(boxes)
    return {"boxes": found[order], "scores": fused_scores[order], "labels": labels[order]}


def _iou_with(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with each of ``boxes (D, 4)``; ``(D,)``."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    inter = sides.clip(min=0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - inter
    return inter / np.maximum(union, np.finfo(union.dtype).tiny)


def suppress(boxes: Tensor, scores: Tensor, group: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes kept, by falling score; a group is a class of an image."""
    if boxes.device.type != "cpu" or not len(boxes):
        # batched_nms separates groups by offsets, which float32 holds too coarsely for many groups.
        # Apple's Metal has no float64.
        precise = torch.float32 if boxes.device.type == "mps" else torch.float64
        return batched_nms(boxes.to(precise), scores.to(precise), group, iou_threshold)
    # batched_nms on the CPU searches all boxes for each group's members; sorted, they are adjacent.
    groups, order = group.sort(stable=True)
    lengths = groups.unique_consecutive(return_counts=True)[1].tolist()
    members = order.split(lengths)
    parts = zip(members, boxes[order].split(lengths), scores[order].split(lengths), strict=True)
    keep = torch.cat([places[nms(b, s, iou_threshold)] for places, b, s in parts])
    return keep[scores[keep].argsort(descending=True, stable=True)]


def top_of_levels(
    scores: Tensor, lengths: Sequence[int], limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the ``limit`` highest of ``scores (N, A)`` in each level; ``lengths`` are their anchors.

    Returns:
        The scores ``(N, C)``, and the indices of their anchors and of their levels.
    """
    chosen, start = [], 0
    for i, level in enumerate(scores.split(list(lengths), dim=1)):
        top = level.topk(min(limit, lengths[i]), dim=1)
        chosen.append((top.values, top.indices + start, torch.full_like(top.indices, i)))
        start += lengths[i]
    values, index, level = (torch.cat(part, dim=1) for part in zip(*chosen, strict=True))
    return values, index, level


def _candidates(predictions: Predictions, config: PostprocessConfig) -> tuple[Tensor, Tensor]:
    """The anchors of each level and image with the highest score of any class.

    The best pairs of anchor and class are among them.

    Returns:
        Indices over the anchors of the batch ``(R,)``, and their levels ``(R,)``.
    """
    best = predictions.logits.amax(dim=2)  # N, A
    if predictions.quality is not None and config.quality == "root":
        best = (best.sigmoid() * predictions.quality.sigmoid()).sqrt().logit()
    limit = config.candidates_per_level
    logit, anchor, level = top_of_levels(best, predictions.level_lengths, limit)  # N, C
    rows = anchor + best.shape[1] * torch.arange(len(best), device=best.device)[:, None]
    if counting_is_free(best.device):
        # Most scores are far below the threshold. The margin allows for rounding.
        near = ~(logit.sigmoid() < 0.999 * config.score_threshold)
        return rows[near], level[near]
    return rows.flatten(), level.flatten()
