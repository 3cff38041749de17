"""What the methods take as truth: boxes and labels of each image, crowds apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sepc_zoo.errors import UserError


class TargetError(UserError, ValueError):
    """A box or label that cannot be learned from; the message names image and box."""


class Truth(NamedTuple):
    """The objects of one image."""

    boxes: Tensor  # G, 4
    labels: Tensor  # G
    crowds: Tensor  # C, 4: regions of objects that nobody told apart, neither object nor background


def truth_of(target: Mapping[str, Any], like: Tensor) -> Truth:
    """Boxes in the type and on the device of ``like``; ``iscrowd`` may be absent."""
    boxes = target["boxes"].to(like).reshape(-1, 4)
    labels = target["labels"].to(like.device)
    crowd = torch.zeros_like(labels, dtype=torch.bool)
    if "iscrowd" in target:
        crowd = target["iscrowd"].to(like.device).bool()
    return Truth(boxes[~crowd], labels[~crowd], boxes[crowd])


class Positives(NamedTuple):
    """The P positive anchors of a batch, and what each has to learn."""

    image: Tensor  # P
    anchor: Tensor  # P
    box: Tensor  # P, index over the boxes of the whole batch
    boxes: Tensor  # P, 4
    labels: Tensor  # P


def positives(match: Tensor, truths: Sequence[Truth]) -> Positives:
    """Gather the matched boxes of a batch; ``match (N, A)`` counts boxes within each image."""
    image, anchor = (match >= 0).nonzero(as_tuple=True)
    counts = torch.tensor([0, *(len(truth.boxes) for truth in truths)], device=match.device)
    box = match[image, anchor] + counts.cumsum(0)[image]
    boxes = torch.cat([truth.boxes for truth in truths])[box]
    labels = torch.cat([truth.labels for truth in truths])[box]
    return Positives(image, anchor, box, boxes, labels)


def check_targets(
    targets: Sequence[Mapping[str, Any]], num_classes: int, extent: tuple[int, int]
) -> None:
    """Refuse boxes without area or outside of the image, and labels out of range.

    Args:
        extent: height and width in pixels that the predictions cover.

    Raises:
        TargetError: names the image (its ``image_id``, or its place in the batch) and the box.
    """
    for place, target in enumerate(targets):
        image = f"image {place} of the batch"
        if "image_id" in target:
            image_id = target["image_id"]
            image = f"image {image_id.item() if isinstance(image_id, Tensor) else image_id}"
        missing = [key for key in ("boxes", "labels") if key not in target]
        if missing:
            raise TargetError(f"{image}: the target has no {' and no '.join(missing)}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.shape != (len(labels), 4):
            raise TargetError(
                f"{image}: boxes are {tuple(boxes.shape)} for {len(labels)} labels; expected (G, 4)"
            )
        if "iscrowd" in target and target["iscrowd"].shape != labels.shape:
            raise TargetError(
                f"{image}: iscrowd is {tuple(target['iscrowd'].shape)} for {len(labels)} labels"
            )
        wrong = _wrong(boxes, labels, num_classes, extent)
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise TargetError(
                f"{image}: box {i} {[round(v, 2) for v in boxes[i].tolist()]} with label "
                f"{int(labels[i])} has no area, lies outside of the {extent[1]}x{extent[0]} image, "
                f"or has no class of {num_classes}; correct it, or let the reader drop bad boxes"
            )


def _wrong(boxes: Tensor, labels: Tensor, num_classes: int, extent: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    right = (x1 < x2) & (y1 < y2) & boxes.isfinite().all(dim=1)
    right &= (x2 > 0) & (y2 > 0) & (x1 < extent[1]) & (y1 < extent[0])
    return ~(right & (labels >= 0) & (labels < num_classes))
