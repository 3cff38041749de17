"""What the methods take as truth: boxes and labels of each image, crowds apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sepc_zoo.errors import UserError
from sepc_zoo.ops.devices import counting_is_free, to_device


class TargetError(UserError, ValueError):
    """A box or label that cannot be learned from; the message names image and box."""


class Truth(NamedTuple):
    """The objects of one image."""

    boxes: Tensor  # G, 4
    labels: Tensor  # G
    crowds: Tensor  # C, 4: regions of objects that nobody told apart, neither object nor background


def truth_of(target: Mapping[str, Any], like: Tensor) -> Truth:
    """Boxes in the type and on the device of ``like``; ``iscrowd`` may be absent."""
    boxes, labels = target["boxes"].reshape(-1, 4), target["labels"]
    crowds = boxes[:0]
    if "iscrowd" in target:  # told apart where they are, and not on a GPU that would be waited for
        crowd = target["iscrowd"].bool()
        boxes, labels, crowds = boxes[~crowd], labels[~crowd], boxes[crowd]
    return Truth(
        to_device(boxes, like.device, like.dtype),
        to_device(labels, like.device),
        to_device(crowds, like.device, like.dtype),
    )


class Truths(NamedTuple):
    """The objects of N images side by side, filled up with boxes without area."""

    boxes: Tensor  # N, G, 4; G is at least 1
    labels: Tensor  # N, G, -1 where there is no box
    crowds: Tensor  # N, C, 4


def pad_truths(truths: Sequence[Truth]) -> Truths:
    device, dtype = truths[0].boxes.device, truths[0].boxes.dtype
    one = torch.zeros(1, 4, device=device, dtype=dtype)
    none = torch.full((1,), -1, device=device)
    return Truths(
        pad_sequence([*(truth.boxes for truth in truths), one], batch_first=True)[:-1],
        pad_sequence([*(truth.labels for truth in truths), none], True, padding_value=-1)[:-1],
        pad_sequence([truth.crowds for truth in truths], batch_first=True),
    )


class Positives(NamedTuple):
    """P anchors of a batch, the positive ones among them, and what each has to learn."""

    image: Tensor  # P
    anchor: Tensor  # P
    real: Tensor  # P, whether it is positive; what follows means something there alone
    box: Tensor  # P, index over the N * G boxes of the batch
    boxes: Tensor  # P, 4
    labels: Tensor  # P


def positives(match: Tensor, truths: Truths) -> Positives:
    """The positive anchors of a batch and their boxes; ``match (N, A)`` counts within each image.

    On a GPU these are all anchors, N * A, since the host would have to wait for their number.
    """
    num_anchors, num_boxes = match.shape[1], truths.labels.shape[1]
    match = match.flatten()
    if counting_is_free(match.device):
        place = (match >= 0).nonzero().squeeze(1)
    else:
        place = torch.arange(len(match), device=match.device)
    match, image = match[place], place // num_anchors
    box = match.clamp(min=0) + image * num_boxes
    return Positives(
        image=image,
        anchor=place % num_anchors,
        real=match >= 0,
        box=box,
        boxes=truths.boxes.flatten(0, 1)[box],
        labels=truths.labels.flatten()[box].clamp(min=0),
    )


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
        missing = [key for key in ("boxes", "labels") if key not in target]
        if missing:
            lacks = " and no ".join(missing)
            raise TargetError(f"{_name(target, place)}: the target has no {lacks}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.shape != (len(labels), 4):
            raise TargetError(
                f"{_name(target, place)}: boxes are {tuple(boxes.shape)} for {len(labels)} labels; "
                "expected (G, 4)"
            )
        if "iscrowd" in target and target["iscrowd"].shape != labels.shape:
            raise TargetError(
                f"{_name(target, place)}: iscrowd is {tuple(target['iscrowd'].shape)} for "
                f"{len(labels)} labels"
            )
    # One look at the values of all images; where they are on a GPU, one wait.
    boxes = torch.cat([target["boxes"] for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    if not _wrong(boxes, labels, num_classes, extent).any():
        return
    for place, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        for i in _wrong(boxes, labels, num_classes, extent).nonzero().flatten().tolist():
            raise TargetError(
                f"{_name(target, place)}: box {i} {[round(v, 2) for v in boxes[i].tolist()]} with "
                f"label {int(labels[i])} has no area, lies outside of the {extent[1]}x{extent[0]} "
                f"image, or has no class of {num_classes}; correct it, or let the reader drop bad "
                "boxes"
            )


def _name(target: Mapping[str, Any], place: int) -> str:
    image_id = target.get("image_id", f"{place} of the batch")
    return f"image {image_id.item() if isinstance(image_id, Tensor) else image_id}"


def _wrong(boxes: Tensor, labels: Tensor, num_classes: int, extent: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    right = (x1 < x2) & (y1 < y2) & boxes.isfinite().all(dim=1)
    right &= (x2 > 0) & (y2 > 0) & (x1 < extent[1]) & (y1 < extent[0])
    return ~(right & (labels >= 0) & (labels < num_classes))
