"""Photos: what a user hands to ``predict``, and the way to the network's input and back."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sepc_zoo.config import DetectorConfig, WeightsConfig
from sepc_zoo.data.images import (
    ImageError,
    high_byte,
    list_images,
    read_image,
    resize_image,
    resize_scale,
    resized_size,
    rgb_of_pil,
)


@dataclass(frozen=True)
class Photo:
    """One photo as it is."""

    pixels: Tensor  # 3, H, W uint8 RGB
    path: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    def to_input(self, weights: WeightsConfig) -> Tensor:
        """The photo ``(3, h, w)`` uint8 at the size for the network, which normalises and pads."""
        size = resized_size(*self.size, *weights.image_size)
        return resize_image(self.pixels, size, antialias=weights.antialias)


def to_photo(
    boxes: Tensor, photo_size: tuple[int, int], size: tuple[int, int], config: DetectorConfig
) -> Tensor:
    """Boxes ``(D, 4)`` of the input, where the photo has ``size``, in the photo's own pixels.

    The authors divide boxes that include their last pixel by the nominal scale; in continuous
    coordinates this is ``x2 -> (x2 - 1) / scale + 1``.
    """
    if config.inclusive_boxes:
        scale = resize_scale(*photo_size, *config.weights.image_size)
        last_pixel = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        return (boxes - last_pixel) / scale + last_pixel
    ratio = [photo_size[1] / size[1], photo_size[0] / size[0]]
    return boxes * boxes.new_tensor(ratio * 2)


def open_photos(source: Any) -> tuple[Iterator[Photo], bool]:
    """The photos of a source one by one, and whether it means a single one.

    Raises:
        ImageError: no such file; unreadable ones raise as they are reached.
        TypeError: the source is nothing that a photo can be made from.
    """
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        return _readable_photos(list_images(Path(source))), False
    if isinstance(source, Tensor) and source.ndim == 4:
        source = list(source)
    if isinstance(source, Sequence) and not isinstance(source, str):
        return (_open_photo(item) for item in source), False
    return iter([_open_photo(source)]), True


def _readable_photos(files: list[Path]) -> Iterator[Photo]:
    for file in files:
        try:
            yield _open_photo(file)
        except ImageError as error:
            warnings.warn(f"left out: {error}", stacklevel=3)


def _open_photo(source: Any) -> Photo:
    if isinstance(source, (str, Path)):
        return Photo(read_image(Path(source)), Path(source))
    if isinstance(source, Image.Image):
        return Photo(_rgb(rgb_of_pil(ImageOps.exif_transpose(source))))
    if isinstance(source, np.ndarray):
        return Photo(_rgb(_from_array(source)))
    if isinstance(source, Tensor):
        return Photo(_rgb(source.cpu()))
    raise TypeError(
        f"cannot predict on {type(source).__name__}: expected a file, folder, PIL image, ndarray, "
        "tensor, or a list of these"
    )


def _from_array(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(array, order="C"))  # a copy, as the array may be read-only
    if tensor.ndim == 3 and tensor.shape[2] == 4:  # RGBA
        tensor = tensor[:, :, :3]
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor


def _rgb(image: Tensor) -> Tensor:
    """``(3, H, W)`` uint8 from one or three channels, uint8, uint16 or float in 0..1."""
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(
            f"expected an image with 1 or 3 channels, got {tuple(image.shape)}; a tensor has its "
            "channels first, an ndarray last"
        )
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(
                "a float image must lie in 0..1; give the photo, not a normalised input"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype == torch.uint16:
        image = high_byte(image)
    if image.dtype != torch.uint8:
        raise ValueError(f"expected an image of uint8, uint16 or float in 0..1, got {image.dtype}")
    return image.expand(3, -1, -1)
