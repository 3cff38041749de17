"""A whole detector as one graph: from the pixels of a batch to a fixed number of detections.

The post-processing is that of ``ops.nms`` and ``models.heads``, but in tensors whose shapes depend
on no values: instead of being removed, what is no candidate gets a score of 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepc_zoo.config import PostprocessConfig
from sepc_zoo.export.suppression import keep_best
from sepc_zoo.methods.fasterrcnn import take
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.two_stage import TwoStageDetector
from sepc_zoo.ops.boxes import clip_boxes
from sepc_zoo.ops.coders import decode
from sepc_zoo.ops.roi_align import roi_align
from sepc_zoo.outputs import Anchors, Predictions

NO_REGION = -1e4  # logit of what is no proposal, below those of all proposals


class DetectionGraph(nn.Module):
    """Images ``(N, H, W, C)`` in 0…255 and their sizes ``(N, 2)`` to D detections of each.

    Args:
        model: in eval mode.
        raw: return the predictions of the head instead, such as logits and deltas.
    """

    def __init__(self, model: Detector, raw: bool = False) -> None:
        super().__init__()
        self.model, self.raw = model, raw
        weights = model.config.weights
        # Constants of the graph, in the type of the computation.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(weights.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(weights.std)[:, None, None])

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects in a batch of images.

        Args:
            images: ``(N, H, W, C)`` uint8, or float32 in 0…255.
            sizes: height and width of each image inside the batch ``(N, 2)``.

        Returns:
            ``boxes (N, D, 4)``, ``scores (N, D)`` and ``labels (N, D)``, sorted by falling score.
            After the last detection of an image, scores are 0 and labels -1.
        """
        x = self.normalize(images, sizes).to(next(self.model.parameters()).dtype)
        if isinstance(self.model, TwoStageDetector):
            return self.two_stage(x, sizes, self.model)
        predictions = self.model(x).in_full_precision()
        if self.raw:
            return tuple(v for v in predictions if isinstance(v, Tensor))
        return self.dense(predictions, sizes)

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalize as ``data.pixels.normalize``, ``(N, H, W, C) -> (N, C, H, W)``."""
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        x = (x - self.mean) / self.std
        row = torch.arange(x.shape[2], device=x.device) < sizes[:, 0, None]  # N, H
        column = torch.arange(x.shape[3], device=x.device) < sizes[:, 1, None]  # N, W
        inside = row[:, None, :, None] & column[:, None, None, :]
        return x.where(inside, 0)

    def dense(self, predictions: Predictions, sizes: Tensor) -> tuple[Tensor, ...]:
        """Post-process dense predictions as ``ops.nms.select_detections``."""
        model: Any = self.model
        config = model.config
        post: PostprocessConfig = config.postprocess
        anchors: Anchors = model.anchors(predictions.sizes, like=predictions.logits)
        best, quality = predictions.logits.amax(dim=2), predictions.quality
        if quality is not None and post.quality == "root":
            best = (best.sigmoid() * quality.sigmoid()).sqrt()
        index, counts = top_of_levels(best, anchors.lengths, post.candidates_per_level)  # N, S
        scores = take(predictions.logits, index).sigmoid()  # N, S, K
        factor = None if quality is None else quality.gather(1, index).sigmoid()[..., None]
        if factor is not None and post.quality == "root":
            scores = (scores * factor).sqrt()
        scores = scores.where(scores > post.score_threshold, 0)
        if post.candidates == "pairs":
            levels = scores.split(counts, dim=1)
            scores = torch.cat([best_pairs(x, post.candidates_per_level) for x in levels], dim=1)
        if factor is not None and post.quality == "factor":
            scores = scores * factor
        boxes = decode(config.coder, anchors.boxes[index], take(predictions.deltas, index))
        boxes = clip_boxes(boxes, sizes, border=1.0 if config.inclusive_boxes else 0.0)
        if not post.empty_boxes:
            has_area = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1, keepdim=True)
            scores = scores.where(has_area, 0)
        return self.detections(boxes, scores.mT)

    def detections(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best detections of each image after suppression within each class.

        Args:
            boxes: ``(N, S, 4)``, shared by all classes.
            scores: ``(N, K, S)``, 0 where a box is no candidate for a class.
        """
        post, count = self.model.config.postprocess, boxes.shape[1]
        scores = keep_best(boxes, scores, post.max_detections, post.iou_threshold, 0.0)
        scores, index = top_with_padding(scores.flatten(1), post.max_detections)
        row, label = split_index(index, count)
        return finish(take(boxes, row), scores, label)

    def two_stage(
        self, x: Tensor, sizes: Tensor, model: TwoStageDetector
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``RPN.propose``, ``RoIHead.forward`` and ``ops.nms.select_region_detections`` in one."""
        head: Any = model.config.head
        post = model.config.postprocess
        pyramid, _ = model.forward_features(x)
        regions = self.propose(pyramid, sizes, model)  # N, R, 4
        exists = (regions[..., 2:] > regions[..., :2]).all(dim=-1)  # N, R
        images, count = regions.shape[:2]
        pooled = pool(pyramid, regions, model)  # N * R, C, s, s
        logits, deltas = (y.to(torch.float32) for y in model.roi_head.classify(pooled))
        num_classes = model.config.num_classes
        scores = logits.softmax(dim=-1)[:, 1 : 1 + num_classes].unflatten(0, (images, count))
        wanted = (scores > post.score_threshold) & exists[..., None]
        deltas = deltas.view(images, count, num_classes, 4)
        boxes = decode(head.roi.coder, regions[:, :, None], deltas)  # N, R, K, 4
        boxes = clip_boxes(boxes.flatten(1, 2), sizes).view(images, count, num_classes, 4)
        large = (boxes[..., 2:] - boxes[..., :2] >= head.roi.min_side).all(dim=-1)
        scores = scores.where(wanted & large, 0).mT  # N, K, R
        boxes = boxes.transpose(1, 2)  # N, K, R, 4
        kept = keep_best(
            boxes.flatten(0, 1),
            scores.flatten(0, 1)[:, None],
            post.max_detections,
            post.iou_threshold,
            0.0,
        )
        kept = kept.view(images, num_classes, count).flatten(1)
        scores, index = top_with_padding(kept, post.max_detections)
        row, label = split_index(index, count)
        boxes = take(boxes.flatten(1, 2), label.clamp(max=num_classes - 1) * count + row)
        return finish(boxes, scores, label)

    def propose(self, pyramid: list[Tensor], sizes: Tensor, model: TwoStageDetector) -> Tensor:
        """Propose regions ``(N, R, 4)`` as ``RPN.propose``; those of the padding have no area."""
        config = model.rpn.config
        logits, deltas = (y.to(torch.float32) for y in model.rpn(pyramid))
        anchors = model.anchors([(x.shape[2], x.shape[3]) for x in pyramid], like=deltas)
        index, counts = top_of_levels(logits, anchors.lengths, config.candidates_per_level)
        boxes = decode(model.config.coder, anchors.boxes[index], take(deltas, index))
        boxes = clip_boxes(boxes, sizes)
        large = (boxes[..., 2:] - boxes[..., :2] >= config.min_side).all(dim=-1)
        scores = logits.gather(1, index).where(large, NO_REGION)
        kept = [
            keep_best(b, s[:, None], config.max_proposals, config.iou_threshold, NO_REGION)
            for b, s in zip(boxes.split(counts, 1), scores.split(counts, 1), strict=True)
        ]
        top = torch.cat([x.squeeze(1) for x in kept], dim=1)
        scores, index = top.topk(torch.sym_min(config.max_proposals, top.shape[1]), dim=1)
        return take(boxes, index).where(scores[..., None] > NO_REGION, 0)


def pool(pyramid: Sequence[Tensor], regions: Tensor, model: TwoStageDetector) -> Tensor:
    """Pool regions ``(N, R, 4)`` as ``RoIHead.pool``, to ``(N * R, C, size, size)``.

    All regions are pooled from every level, because no shape may depend on values.
    """
    roi_head = model.roi_head
    config, boxes = roi_head.config, regions.flatten(0, 1)
    image = torch.arange(regions.shape[0], device=boxes.device)[:, None]
    image = image.expand(-1, regions.shape[1]).flatten().to(boxes.dtype)
    rows = torch.cat([image[:, None], boxes], dim=1)
    level = roi_head.level_of(boxes)[:, None, None, None]
    pooled: Tensor | None = None
    for i, number in enumerate(roi_head.levels):
        x = pyramid[i].to(rows.dtype)
        x = roi_align(x, rows, config.size, 2.0**-number, config.sampling_ratio, config.aligned)
        pooled = x if pooled is None else x.where(level == i, pooled)
    assert pooled is not None
    return pooled.to(pyramid[0].dtype)


def top_of_levels(scores: Tensor, lengths: Sequence[int], limit: int) -> tuple[Tensor, list[Any]]:
    """Indices ``(N, S)`` of the best anchors of each level, and the number of each level.

    Args:
        scores: ``(N, A)``.
        lengths: number of anchors of each level.
    """
    chosen, counts, start = [], [], 0
    for length, level in zip(lengths, scores.split(lengths, dim=1), strict=True):
        counts.append(torch.sym_min(limit, length))
        chosen.append(level.topk(counts[-1], dim=1).indices + start)
        start += length
    return torch.cat(chosen, dim=1), counts


def best_pairs(scores: Tensor, limit: int) -> Tensor:
    """Set all but the best pairs of anchor and class ``(N, S, K)`` to 0."""
    pairs = scores.flatten(1)
    top = pairs.topk(torch.sym_min(limit, pairs.shape[1]), dim=1)
    kept = torch.zeros_like(pairs).scatter(1, top.indices, top.values)
    return kept.view_as(scores)


def top_with_padding(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The ``limit`` best scores of ``(N, S)`` and their indices; 0 where there are fewer."""
    values, index = F.pad(scores, (0, limit)).topk(limit, dim=1)
    return values, index


def split_index(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Remainder and quotient of a division by a size."""
    divisor = index.new_full((), count)  # ONNX has no remainder by a size that is not fixed
    return index % divisor, index // divisor


def finish(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Detections ``(N, D)`` in which padding has the label -1 and a box of zeros."""
    found = scores > 0
    return boxes.where(found[..., None], 0), scores, labels.where(found, -1)
