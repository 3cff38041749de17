"""Targets of a batch as a loss takes them: padded boxes and labels, and the positive anchors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sepc_zoo.errors import UserError
from sepc_zoo.ops.devices import to_device
from sepc_zoo.outputs import Targets

# The host must wait for a GPU to learn the number of positives. True gathers all anchors instead,
# and masks those that are not positive. Not measured on a GPU yet.
GATHER_ALL = False


class TargetError(UserError, ValueError):
    """A box or label that cannot be learned from; the message names image and box."""


def collate_targets(targets: Sequence[Mapping[str, Any]], like: Tensor) -> Targets:
    """Collate the targets of a batch, crowds apart, in the type and on the device of ``like``."""
    boxes, labels, weights, crowds = map(list, zip(*map(_split_crowds, targets), strict=True))
    no_box, no_label = boxes[0].new_zeros(1, 4), labels[0].new_full((1,), -1)
    no_weight = weights[0].new_ones(1)
    is_weighted = any("weights" in target for target in targets)
    padded = pad_sequence([*weights, no_weight], True, 1)[:-1] if is_weighted else None
    return Targets(
        to_device(pad_sequence([*boxes, no_box], True)[:-1], like.device, like.dtype),
        to_device(pad_sequence([*labels, no_label], True, -1)[:-1], like.device),
        to_device(pad_sequence(crowds, True), like.device, like.dtype),
        tuple(map(len, labels)),
        None if padded is None else to_device(padded, like.device, like.dtype),
    )


def _split_crowds(target: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split a target into boxes, labels, weights and crowd boxes.

    This happens on the target's own device: on CUDA, indexing by a mask would wait.
    """
    boxes, labels = target["boxes"].reshape(-1, 4), target["labels"]
    weights = target["weights"] if "weights" in target else boxes.new_ones(len(labels))
    if "iscrowd" not in target:
        return boxes, labels, weights, boxes[:0]
    crowd = target["iscrowd"].bool()
    return boxes[~crowd], labels[~crowd], weights[~crowd], boxes[crowd]


class Positives(NamedTuple):
    """P anchors of a batch, and the target of each."""

    image: Tensor  # P
    anchor: Tensor  # P
    box: Tensor  # P, index over the N * G boxes of the padded batch
    boxes: Tensor  # P, 4
    labels: Tensor  # P
    real: Tensor | None  # P, False where the anchor is not positive; None: all are
    weights: Tensor | None = None  # P, of the label in the loss; None: all are 1

    def weigh(self, values: Tensor) -> Tensor:
        """Multiply the losses ``(P,)`` of the anchors' own classes by their weights."""
        return values if self.weights is None else values * self.weights

    def sum(self, values: Tensor) -> Tensor:
        """Sum ``values (P,)`` or ``(P, V)`` over the anchors that are positive: ``()``."""
        if self.real is None:
            return values.sum()
        real = self.real if values.ndim == 1 else self.real[:, None]
        return values.masked_fill(~real, 0).sum()


def positives(match: Tensor, targets: Targets) -> Positives:
    """Gather the positive anchors of a batch; ``match (N, A)`` has indices within each image."""
    num_anchors, num_boxes = match.shape[1], targets.labels.shape[1]
    match = match.flatten()
    if GATHER_ALL:
        place = torch.arange(len(match), device=match.device)
    else:
        place = (match >= 0).nonzero().squeeze(1)
    match, image = match[place], place // num_anchors
    box = match.clamp(min=0) + image * num_boxes
    return Positives(
        image=image,
        anchor=place % num_anchors,
        box=box,
        boxes=targets.boxes.flatten(0, 1)[box],
        labels=targets.labels.flatten()[box].clamp(min=0),
        real=match >= 0 if GATHER_ALL else None,
        weights=None if targets.weights is None else targets.weights.flatten()[box],
    )


def known_image_sizes(targets: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]] | None:
    """Height and width of each image inside the batch, pixels; None where a target lacks them."""
    if any("image_size" not in target for target in targets):
        return None
    sizes = [target["image_size"] for target in targets]
    return [(int(height), int(width)) for height, width in sizes]


def check_targets(
    targets: Sequence[Mapping[str, Any]], num_classes: int, extent: tuple[int, int]
) -> None:
    """Refuse boxes without area or outside of the image, and labels out of range.

    Args:
        extent: height and width of the batch in pixels.

    Raises:
        TargetError: names the image by its ``image_id``, or by its index in the batch, and the box.
    """
    for place, target in enumerate(targets):
        if reason := _malformed(target):
            raise TargetError(f"{_name(target, place)}: {reason}")
    # All images at once: on a GPU that is one wait.
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
                f"image, or its label is not in 0..{num_classes - 1}; correct it, or train with "
                "--drop-bad-boxes"
            )


def _malformed(target: Mapping[str, Any]) -> str:
    """Say which entries of a target are missing or differ in length; "" where all fit."""
    missing = [key for key in ("boxes", "labels") if key not in target]
    if missing:
        return f"the target has no {' and no '.join(missing)}"
    shape, count = tuple(target["boxes"].shape), len(target["labels"])
    if shape != (count, 4):
        return f"boxes are {shape} for {count} labels; expected (G, 4)"
    for key in ("iscrowd", "weights"):
        if key in target and target[key].shape != target["labels"].shape:
            return f"{key} is {tuple(target[key].shape)} for {count} labels"
    return ""


def _name(target: Mapping[str, Any], place: int) -> str:
    image_id = target.get("image_id", f"{place} of the batch")
    return f"image {image_id.item() if isinstance(image_id, Tensor) else image_id}"


def _wrong(boxes: Tensor, labels: Tensor, num_classes: int, extent: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    right = (x1 < x2) & (y1 < y2) & boxes.isfinite().all(dim=1)
    right &= (x2 > 0) & (y2 > 0) & (x1 < extent[1]) & (y1 < extent[0])
    return ~(right & (labels >= 0) & (labels < num_classes))
