"""Combining images: mosaic, mixup, copy-paste; and crops.

A sample is a uint8 image ``(C, H, W)`` with its target, whose boxes are xyxy pixels of the image.
Random numbers come from torch's default generator.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepc_zoo.data.pixels import resize_image, resized_size
from sepc_zoo.data.transforms.augmentation import Augmentation
from sepc_zoo.ops.boxes import box_area, box_centre, box_iof

Target = dict[str, Any]
Sample = tuple[Tensor, Target]

COLUMNS = ("boxes", "labels", "iscrowd", "area")  # entries of a target with a row per box
GREY = 114  # fills the canvas
CROP_TRIES, PASTE_TRIES = 10, 10
MAX_PASTED = 5  # objects
MAX_COVERED = 0.3  # share of an object that pasted ones may cover


@dataclass(frozen=True)
class Mixer:
    """Combines an image with others, by the probabilities of ``augmentation``.

    The result is at most ``short`` x ``long`` pixels, like a single image.
    """

    augmentation: Augmentation
    short: int
    long: int
    antialias: bool

    def is_on(self, epoch: int) -> bool:
        last = self.augmentation.mix_epochs
        return self.augmentation.mixes and (last is None or epoch < last)

    def __call__(self, sample: Sample, another: Callable[[], Sample]) -> Sample:
        """Mix ``sample`` with samples that ``another`` draws; keep its ``image_id``."""
        if chance(self.augmentation.mosaic or 0.0):
            sample = self.mosaic([sample, another(), another(), another()])
        if chance(self.augmentation.copy_paste):
            other = self.fit(another(), uniform(0.5, 1.0))
            sample = paste_objects(self.fit(sample), other)
        if chance(self.augmentation.mixup):
            sample = mixup(self.fit(sample), self.fit(another()))
        return sample

    def fit(self, sample: Sample, factor: float = 1.0) -> Sample:
        """Resize a sample to its size for training, times ``factor``."""
        height, width = sample[0].shape[-2:]
        size = resized_size(height, width, self.short * factor, self.long * factor)
        return resize(sample, size, self.antialias)

    def mosaic(self, samples: Sequence[Sample]) -> Sample:
        """Put four images around a point, at half to full size (Bochkovskiy et al. 2020)."""
        height, width = samples[0][0].shape[-2:]
        height, width = resized_size(height, width, self.short, self.long)
        y, x = (round(side * uniform(0.3, 0.7)) for side in (height, width))
        canvas = samples[0][0].new_full((len(samples[0][0]), height, width), GREY)
        targets = []
        for i, sample in enumerate(samples):
            image, _ = sample = self.fit(sample, uniform(0.5, 1.0))
            is_lower, is_right = divmod(i, 2)
            rows = min(image.shape[1], height - y if is_lower else y)
            columns = min(image.shape[2], width - x if is_right else x)
            # The corner of the image at the common point stays, the far sides are cut off.
            part, target = crop(
                sample,
                0 if is_lower else image.shape[1] - rows,
                0 if is_right else image.shape[2] - columns,
                rows,
                columns,
            )
            top, left = y if is_lower else y - rows, x if is_right else x - columns
            canvas[:, top : top + rows, left : left + columns] = part
            targets.append(shift(target, left, top))
        return canvas, join(targets)


def mixup(sample: Sample, other: Sample) -> Sample:
    """Blend two images, with the boxes of both (Zhang et al. 2019; as in YOLOX)."""
    image, target = sample
    height, width = image.shape[-2:]
    other_image, other_target = crop(
        other, 0, 0, min(height, other[0].shape[-2]), min(width, other[0].shape[-1])
    )
    canvas = torch.full_like(image, GREY)
    canvas[:, : other_image.shape[-2], : other_image.shape[-1]] = other_image
    share = uniform(0.4, 0.6)
    blend = torch.lerp(canvas.float(), image.float(), share).round().to(torch.uint8)
    return blend, join([target, other_target])


def paste_objects(sample: Sample, other: Sample) -> Sample:
    """Paste objects of another image, cut out by their boxes, where they hide no other object.

    Crowds are not pasted.
    """
    image, target = sample
    objects = ((other[1]["iscrowd"] == 0) & (box_area(other[1]["boxes"]) >= 4)).nonzero().flatten()
    number = min(len(objects), int(uniform(1, MAX_PASTED + 1)))
    unreadable = target["unreadable"] + other[1]["unreadable"]
    image, targets = image.clone(), [target | {"unreadable": unreadable}]
    hidden = torch.zeros(len(target["boxes"]))  # covered share of each box, piece by piece
    for index in objects[torch.randperm(len(objects))[:number]].tolist():
        piece, alone = cut_out(other, index)
        rows, columns = image.shape[-2] - piece.shape[-2], image.shape[-1] - piece.shape[-1]
        for _ in range(PASTE_TRIES if min(rows, columns) >= 0 else 0):
            top, left = int(uniform(0, rows + 1)), int(uniform(0, columns + 1))
            bottom, right = top + piece.shape[-2], left + piece.shape[-1]
            place = torch.tensor([[left, top, right, bottom]], dtype=torch.float32)
            now_hidden = hidden + box_iof(place, join(targets)["boxes"])[0]
            if not (now_hidden > MAX_COVERED).any():
                image[:, top:bottom, left:right] = piece
                targets.append(shift(alone, left, top))
                hidden = torch.cat([now_hidden, torch.zeros(1)])
                break
    return image, join(targets)


def cut_out(sample: Sample, index: int) -> Sample:
    """Crop a sample to one box, and drop the other boxes, but not their pixels."""
    x1, y1, x2, y2 = sample[1]["boxes"][index].tolist()
    top, left = math.floor(y1), math.floor(x1)
    alone = select(sample[1], torch.arange(len(sample[1]["boxes"])) == index)
    return crop((sample[0], alone), top, left, math.ceil(y2) - top, math.ceil(x2) - left)


def random_crop(sample: Sample) -> Sample:
    """Crop to at least half the sides at random, keeping an object where there is one."""
    image, target = sample
    height, width = image.shape[-2:]
    for _ in range(CROP_TRIES):
        rows = max(1, round(height * uniform(0.5, 1.0)))
        columns = max(1, round(width * uniform(0.5, 1.0)))
        top, left = int(uniform(0, height - rows + 1)), int(uniform(0, width - columns + 1))
        part = crop(sample, top, left, rows, columns)
        if has_object(part[1]) or not has_object(target):
            return part
    return sample


def has_object(target: Target) -> bool:
    return bool((target["iscrowd"] == 0).any())


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Crop a sample. Boxes stay whose centres lie inside, clipped to the crop."""
    image, target = sample
    part = image[:, top : top + height, left : left + width]
    return part, clip_target(shift(target, -left, -top), height, width)


def clip_target(target: Target, height: int, width: int) -> Target:
    """Clip the boxes of a target to an image; those whose centres are outside are left out."""
    boxes = target["boxes"]
    extent = boxes.new_tensor([width, height])
    centres = box_centre(boxes)
    inside = ((centres >= 0) & (centres <= extent)).all(dim=1)
    clipped = torch.minimum(boxes.clamp(min=0), extent.repeat(2))
    left_over = box_area(clipped) / box_area(boxes).clamp(min=1e-6)
    return select(target | {"boxes": clipped, "area": target["area"] * left_over}, inside)


def resize(sample: Sample, size: tuple[int, int], antialias: bool) -> Sample:
    """Resize a sample to ``size`` (height, width)."""
    image, target = sample
    y, x = size[0] / image.shape[-2], size[1] / image.shape[-1]
    return resize_image(image, size, antialias), scale(target, x, y)


def scale(target: Target, x: float, y: float) -> Target:
    """Scale a target to an image whose sides are multiplied by ``x`` and ``y``."""
    boxes = target["boxes"] * target["boxes"].new_tensor([x, y, x, y])
    return target | {"boxes": boxes, "area": target["area"] * (x * y)}


def shift(target: Target, x: float, y: float) -> Target:
    return target | {"boxes": target["boxes"] + target["boxes"].new_tensor([x, y, x, y])}


def select(target: Target, kept: Tensor) -> Target:
    """Keep some of the boxes of a target, chosen by a mask ``(G,)``."""
    return target | {name: target[name][kept] for name in COLUMNS}


def join(targets: Sequence[Target]) -> Target:
    """Join targets: the first, with the boxes and unreadable files of all."""
    columns = {name: torch.cat([target[name] for target in targets]) for name in COLUMNS}
    unreadable = [message for target in targets for message in target["unreadable"]]
    return targets[0] | columns | {"unreadable": unreadable}


def chance(probability: float) -> bool:
    return probability > 0 and torch.rand(()).item() < probability


def uniform(low: float, high: float) -> float:
    return torch.empty(()).uniform_(low, high).item()
