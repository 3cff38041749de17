"""Images as tensors: resizing, normalising, batching."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF


def resize_scale(height: int, width: int, short: float, long: float) -> float:
    """Compute the largest scale that makes the sides at most ``short`` and ``long`` pixels."""
    return min(long / max(height, width), short / min(height, width))


def resized_size(
    height: int, width: int, short: float, long: float, rounded: bool = True
) -> tuple[int, int]:
    """The ``(height, width)`` after ``resize_scale``, rounded or cut, and at least one pixel."""
    scale, half = resize_scale(height, width, short, long), 0.5 if rounded else 0.0
    return max(1, int(height * scale + half)), max(1, int(width * scale + half))


def resize_image(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """Resize uint8 ``(C, H, W)`` to ``size`` (height, width), bilinear."""
    return TF.resize(image, list(size), InterpolationMode.BILINEAR, antialias=antialias)


def normalize(
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalise uint8 images ``(N, C, H, W)`` for a network: scaled to 0...1, minus mean, over std.

    Pixels beyond the (height, width) of an image become 0. The result is of ``dtype``, by default
    torch's. Does not synchronise a GPU.
    """
    images = _copy_as(images, dtype or torch.get_default_dtype()).div_(255)
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        images[:, channel].sub_(m).div_(s)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


def _copy_as(images: Tensor, dtype: torch.dtype) -> Tensor:
    if images.device.type != "cpu":
        return images.to(dtype, copy=True)
    # numpy asks the system for large pages: the first access to new memory in small pages takes
    # several times as long as normalising its content.
    memory = torch.from_numpy(np.empty(images.numel() * dtype.itemsize, dtype=np.uint8))
    return memory.view(dtype).view(images.shape).copy_(images)


def pad_and_stack(images: Sequence[Tensor], multiple: int) -> Tensor:
    """Stack images ``(C, H_i, W_i)`` to ``(N, C, H, W)``, with zeros to the right and below.

    H and W are the largest sides, rounded up to a multiple of ``multiple``.
    """
    if not images:
        raise ValueError("no images to stack")
    height, width = map(max, zip(*(padded_size(image, multiple) for image in images), strict=True))
    stacked = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for place, image in zip(stacked, images, strict=True):
        place[:, : image.shape[-2], : image.shape[-1]] = image
    return stacked


def padded_size(image: Tensor, multiple: int) -> tuple[int, int]:
    """Round the ``(height, width)`` of an image up to a multiple of ``multiple``."""
    height, width = (-(-side // multiple) * multiple for side in image.shape[-2:])
    return height, width
