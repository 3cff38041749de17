"""From a photo and its boxes to what a detector is trained and validated on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from sepc_zoo.data.augmentation import Augmentation
from sepc_zoo.data.mixing import Target, chance, random_crop, uniform
from sepc_zoo.ops.image import normalize_image, resize_image, resized_size

MIRRORED = Augmentation()
# image, target -> image, target; see ``make_target`` for what a target has
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


def train_transform(
    short: int,
    long: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    antialias: bool,
    augmentation: Augmentation = MIRRORED,
) -> Transform:
    """Crop, resize, augment and normalise a uint8 image ``(3, H, W)``, its boxes with it.

    The sides are at most ``short`` and ``long`` pixels, times what the augmentation says. Boxes of
    less than a pixel are left out of the result, and their labels, crowd flags and areas with them.
    """
    factors = augmentation.factors(short)
    steps: list[Transform | v2.Transform] = [
        Crop(augmentation.crop),
        ResizeWithBoxes(short, long, factors, augmentation.scale, antialias),
        v2.RandomHorizontalFlip(augmentation.hflip),
    ]
    if augmentation.vflip:
        steps.append(v2.RandomVerticalFlip(augmentation.vflip))
    if augmentation.color_jitter:
        steps.append(v2.RandomPhotometricDistort())
    clean = [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(labels_getter=_columns)]
    return v2.Compose([*steps, *clean, Normalize(tuple(mean), tuple(std))])


@dataclass(frozen=True)
class Crop:
    """A random part of the photo, at times."""

    probability: float

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        sample = image, target
        return random_crop(sample) if chance(self.probability) else sample


@dataclass(frozen=True)
class ResizeWithBoxes:
    """Resize image, boxes and areas by a random factor, and hand them on as tv_tensors."""

    short: int
    long: int
    factors: tuple[float, ...]  # one is drawn,
    scale: tuple[float, float]  # and one between these
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


@dataclass(frozen=True)
class Normalize:
    """Normalise the image, and hand everything on as plain tensors."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        plain = {**target, "boxes": target["boxes"].as_subclass(Tensor)}
        return normalize_image(image.as_subclass(Tensor), self.mean, self.std), plain


def _columns(sample: tuple[Tensor, Target]) -> tuple[Tensor, ...]:
    """What goes when a box goes."""
    target = sample[1]
    return target["labels"], target["iscrowd"], target["area"]
