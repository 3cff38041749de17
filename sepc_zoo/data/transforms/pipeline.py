"""The transform of training images and their boxes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from sepc_zoo.data.images import resize_image, resized_size
from sepc_zoo.data.transforms.augmentation import Augmentation
from sepc_zoo.data.transforms.mixing import Target, chance, random_crop, select, uniform

FLIPPED = Augmentation()
# image, target -> image, target; see ``make_target`` for the keys of a target
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


def train_transform(
    short: int,
    long: int,
    *,
    antialias: bool,
    augmentation: Augmentation = FLIPPED,
) -> Transform:
    """Crop, resize and augment a uint8 image ``(3, H, W)``, its boxes with it.

    The sides are at most ``short`` and ``long`` pixels, times the factors of the augmentation.
    Boxes of less than a pixel are left out, with their labels, crowd flags and areas.
    """
    factors = augmentation.factors(short)
    steps: list[Transform | v2.Transform] = [
        Crop(augmentation.crop),
        ResizeWithBoxes(short, long, factors, augmentation.scale_range, antialias),
        v2.RandomHorizontalFlip(augmentation.hflip),
    ]
    if augmentation.vflip:
        steps.append(v2.RandomVerticalFlip(augmentation.vflip))
    if augmentation.color_jitter:
        steps.append(v2.RandomPhotometricDistort())
    return v2.Compose([*steps, clean_boxes])


@dataclass(frozen=True)
class Crop:
    """Crops an image at random."""

    probability: float

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        sample = image, target
        return random_crop(sample) if chance(self.probability) else sample


@dataclass(frozen=True)
class ResizeWithBoxes:
    """Resizes image, boxes and areas by a random factor, and returns them as tv_tensors."""

    short: int
    long: int
    factors: tuple[float, ...]  # one is drawn
    scale: tuple[float, float]  # range of a second factor
    antialias: bool

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        height, width = image.shape[-2:]
        drawn = self.factors[int(torch.randint(len(self.factors), ()))]
        factor = drawn * uniform(*self.scale)
        size = resized_size(height, width, self.short * factor, self.long * factor)
        boxes = tv_tensors.BoundingBoxes(
            target["boxes"], format="XYXY", canvas_size=(height, width)
        )
        area = target["area"] * (size[0] * size[1] / (height * width))
        resized = {**target, "boxes": TF.resize(boxes, list(size)), "area": area}
        return tv_tensors.Image(resize_image(image, size, self.antialias)), resized


def clean_boxes(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Clip the boxes, drop those of less than a pixel, and return plain tensors."""
    height, width = image.shape[-2:]
    boxes = target["boxes"].as_subclass(Tensor)
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height] * 2))
    has_sides = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
    return image.as_subclass(Tensor), select(target | {"boxes": boxes}, has_sides)
