"""The transform of training images and their boxes."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from sepc_zoo.data.pixels import resize_image, resized_size
from sepc_zoo.data.transforms.augmentation import Augmentation
from sepc_zoo.data.transforms.mixing import Target, chance, random_crop, select, uniform
from sepc_zoo.data.transforms.warp import Warp

FLIPPED = Augmentation()
BLUR_PIXELS, BLUR_KERNEL = (0.1, 2.0), 5  # range of sigma; side of the kernel
JPEG_QUALITY = (30, 95)
# image, target -> image, target; see ``make_target`` for the keys of a target
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


def train_transform(
    short: int,
    long: int,
    *,
    antialias: bool,
    augmentation: Augmentation = FLIPPED,
    first: Transform | None = None,
) -> Transform:
    """Crop, resize and augment a uint8 image ``(C, H, W)``, its boxes with it.

    The sides are at most ``short`` and ``long`` pixels, times the factors of the augmentation.
    Boxes of less than a pixel are left out, with their labels, crowd flags and areas. The transform
    ``first`` is applied before all others.
    """
    asked = augmentation
    steps: list[Transform | v2.Transform] = [
        partial(crop_at_random, asked.crop),
        partial(resize_at_random, short, long, antialias, asked),
        v2.RandomHorizontalFlip(asked.hflip),
    ]
    if asked.vflip:
        steps.append(v2.RandomVerticalFlip(asked.vflip))
    if asked.warps:
        steps.append(Warp(asked.degrees, asked.shear, asked.translate, asked.perspective))
    if asked.color_jitter:
        steps.append(partial(change_pixels, v2.RandomPhotometricDistort()))
    if asked.hue or asked.saturation or asked.brightness:
        jitter = v2.ColorJitter(asked.brightness, 0, asked.saturation, asked.hue)
        steps.append(partial(change_pixels, jitter))
    if asked.blur:
        blur = v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL, BLUR_PIXELS)], asked.blur)
        steps.append(partial(change_pixels, blur, min_side=BLUR_KERNEL))
    if asked.jpeg:
        jpeg = v2.RandomApply([v2.JPEG(JPEG_QUALITY)], asked.jpeg)
        steps.append(partial(change_pixels, jpeg))
    return v2.Compose([*filter(None, [first]), *steps, clean_boxes])


def crop_at_random(probability: float, image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Apply ``random_crop`` with this probability."""
    sample = image, target
    return random_crop(sample) if chance(probability) else sample


def resize_at_random(
    short: int, long: int, antialias: bool, asked: Augmentation, image: Tensor, target: Target
) -> tuple[Tensor, Target]:
    """Resize image, boxes and areas by random factors, and return them as tv_tensors."""
    height, width = image.shape[-2:]
    factors = asked.factors(short)
    factor = factors[int(torch.randint(len(factors), ()))] * uniform(*asked.scale_range)
    size = resized_size(height, width, short * factor, long * factor)
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
    area = target["area"] * (size[0] * size[1] / (height * width))
    resized = {**target, "boxes": TF.resize(boxes, list(size)), "area": area}
    return tv_tensors.Image(resize_image(image, size, antialias)), resized


def change_pixels(
    transform: v2.Transform, image: Tensor, target: Target, min_side: int = 1
) -> tuple[Tensor, Target]:
    """Apply a transform to the pixels alone.

    Channels other than RGB are transformed as grey images: their brightness and contrast change
    together, while hue and saturation have no meaning. Images with a side of less than
    ``min_side`` pixels stay as they are.
    """
    if min(image.shape[-2:]) < min_side:
        return image, target
    if len(image) == 3:
        return transform(image), target
    return tv_tensors.Image(transform(image[:, None])[:, 0]), target


def clean_boxes(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Clip the boxes, drop those of less than a pixel, and return plain tensors."""
    height, width = image.shape[-2:]
    boxes = target["boxes"].as_subclass(Tensor)
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height] * 2))
    has_sides = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
    return image.as_subclass(Tensor), select(target | {"boxes": boxes}, has_sides)
