"""From predictions to detections, for a whole batch at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from sepc_zoo.config import PostprocessConfig
from sepc_zoo.ops.boxes import clip_boxes
from sepc_zoo.predictions import Predictions


@torch.no_grad()
def select_detections(
    predictions: Predictions,
    anchors: Tensor,
    decode: Callable[[Tensor, Tensor], Tensor],
    image_sizes: Sequence[tuple[int, int]],
    config: PostprocessConfig,
    border: float = 0.0,
) -> list[dict[str, Tensor]]:
    """Class-wise non-maximum suppression of the best anchors of each level.

    Args:
        anchors: ``(A, 4)``.
        decode: from anchors and deltas to boxes, both ``(N, C, 4)``.
        image_sizes: height and width of each image inside the batch; boxes are clipped to it.
        border: pixels of an image that stay under every box, see ``clip_boxes``.

    Returns:
        For each image ``boxes (D, 4)``, ``scores (D,)`` and ``labels (D,)`` by falling score.
    """
    images, _, num_classes = predictions.logits.shape
    if len(image_sizes) != images:
        raise ValueError(f"{len(image_sizes)} image_sizes for {images} images")
    candidates = _best_anchors(predictions, config.candidates_per_level)  # N, C
    rows = torch.arange(len(candidates), device=candidates.device)[:, None]
    scores = predictions.logits[rows, candidates].sigmoid()  # N, C, K
    boxes = decode(anchors[candidates], predictions.deltas[rows, candidates])
    boxes = clip_boxes(boxes, torch.tensor(image_sizes, device=boxes.device), border)

    image, candidate, label = (scores > config.score_threshold).nonzero(as_tuple=True)
    boxes, scores = boxes[image, candidate], scores[image, candidate, label]
    # Classes and images are told apart by an offset, too coarse for float32 with many of them.
    group = image * num_classes + label
    precise = torch.float32 if boxes.device.type == "mps" else torch.float64  # Apple's has no more
    keep = batched_nms(boxes.to(precise), scores.to(precise), group, config.iou_threshold)
    image = image[keep]
    found = [keep[image == i][: config.max_detections] for i in range(len(candidates))]
    return [{"boxes": boxes[d], "scores": scores[d], "labels": label[d]} for d in found]


def _best_anchors(predictions: Predictions, per_level: int) -> Tensor:
    """Indices ``(N, C)`` of the anchors of each level with the highest logit of any class."""
    best = predictions.logits.amax(dim=2)  # N, A
    indices, start = [], 0
    for length in predictions.level_lengths:
        level = best[:, start : start + length]
        indices.append(level.topk(min(per_level, length), dim=1).indices + start)
        start += length
    return torch.cat(indices, dim=1)
