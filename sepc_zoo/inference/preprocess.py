"""Images of any kind: opened, resized to a network's input, and their boxes moved back."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sepc_zoo.config import DetectorConfig
from sepc_zoo.data.images import (
    ImageError,
    decode_image,
    high_byte,
    list_images,
    pixels_of_pil,
    read_image,
)
from sepc_zoo.data.pixels import resize_image, resize_scale, resized_size

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
URL_START = ("http://", "https://")
MAX_DOWNLOAD = 2**28  # bytes of an image
TIMEOUT = 30.0  # seconds without a byte


class LoadedImage(NamedTuple):
    """The pixels ``(C, H, W)`` uint8 of an image, and where they come from."""

    pixels: Tensor
    path: Path | None = None
    frame: int | None = None  # index among the frames of its video
    time: Fraction | None = None  # seconds since the video's start


@dataclass(frozen=True)
class Resize:
    """The way from the pixels of an image to a network's input, and of boxes back.

    Attributes:
        image_size: height and width of the image.
        input_size: height and width of the image inside the network's input.
        antialias: whether to filter when the image is made smaller.
        floats: whether resized pixels keep fractions of a grey level.
        inclusive_scale: input pixels per image pixel, if boxes include their last pixel (the SEPC
            authors' models); None: boxes are moved back by the ratio of each side.
    """

    image_size: tuple[int, int]
    input_size: tuple[int, int]
    antialias: bool = True
    floats: bool = False
    inclusive_scale: float | None = None

    def to_input(self, pixels: Tensor) -> Tensor:
        """Resize ``(C, H, W)`` to ``(C, h, w)``, still in 0…255 and not normalised."""
        if self.floats and not pixels.is_floating_point():
            pixels = pixels.to(torch.get_default_dtype())
        return resize_image(pixels, self.input_size, antialias=self.antialias)

    def to_image(self, boxes: Tensor) -> Tensor:
        """Move boxes ``(D, 4)`` from the pixels of the input to those of the image."""
        if self.inclusive_scale is not None:  # x2 - 1 is the last pixel inside the box
            last_pixel = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
            return (boxes - last_pixel) / self.inclusive_scale + last_pixel
        (height, width), (input_height, input_width) = self.image_size, self.input_size
        return boxes * boxes.new_tensor([width / input_width, height / input_height] * 2)


def plan_resize(
    image_size: tuple[int, int], config: DetectorConfig, bounds: tuple[int, int] | None = None
) -> Resize:
    """Choose the input size of an image by the conventions of a model's weights.

    These conventions are read here only; a new one is an entry of the config and a field of
    ``Resize``.

    Args:
        image_size: height and width of the image.
        bounds: largest short and long side of the input, pixels; by default the model's own.
    """
    weights = config.weights
    short, long = bounds or weights.image_size
    if weights.upright not in (None, image_size[0] > image_size[1]):
        short, long = long, short
    size = resized_size(*image_size, short, long, rounded=weights.round_sides)
    if not weights.keep_ratio:
        size = (short, long) if image_size[0] <= image_size[1] else (long, short)
    return Resize(
        image_size,
        size,
        antialias=weights.antialias,
        floats=weights.resize_floats,
        inclusive_scale=resize_scale(*image_size, short, long) if config.inclusive_boxes else None,
    )


def open_images(source: Any, channels: int = 3) -> tuple[Iterator[LoadedImage], bool]:
    """Open the images of a source of ``predict`` one by one; also whether it is a single image.

    An unreadable file of a folder is left out with a warning; one of a list raises when it is
    reached.
    """
    if isinstance(source, str | os.PathLike) and not str(source).startswith(URL_START):
        source = Path(source).expanduser()
    if isinstance(source, Path) and source.is_dir():
        return _readable_images(list_images(source), channels), False
    if isinstance(source, Tensor) and source.ndim == 4:
        source = list(source)
    is_many = isinstance(source, Sequence | Iterator) and not isinstance(source, str | bytes)
    if is_many:
        return (open_image(one, channels) for one in source), False
    return iter([open_image(source, channels)]), True


def open_image(source: ImageSource, channels: int = 3) -> LoadedImage:
    """Open one image for a model of a number of channels, see ``read_image``.

    Raises:
        ImageError: a file is missing or no image, or pixels have another shape, type or range.
        TypeError: the source is of no such type.
    """
    if isinstance(source, str) and source.startswith(URL_START):
        name = without_password(source)
        return LoadedImage(decode_image(download_image(source), name, channels=channels))
    if isinstance(source, bytes):
        return LoadedImage(decode_image(source, f"{len(source)} bytes", channels=channels))
    if isinstance(source, str | os.PathLike):
        return LoadedImage(read_image(source, channels=channels), Path(source))
    if isinstance(source, Image.Image):
        pixels = pixels_of_pil(ImageOps.exif_transpose(source), channels)
    elif isinstance(source, np.ndarray):
        pixels = _from_array(source, channels)
    elif isinstance(source, Tensor):
        pixels = source.cpu()
    else:
        raise TypeError(
            f"cannot predict on {type(source).__name__}: expected a file, folder, URL, bytes, PIL "
            "image, ndarray, tensor, or a list of these"
        )
    return LoadedImage(_to_uint8(pixels, channels))


def download_image(url: str) -> bytes:
    """Download an image file, of at most ``MAX_DOWNLOAD`` bytes."""
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError, OverflowError, HTTPException) as error:
        raise ImageError(f"{without_password(url)}: {error}") from error
    if len(data) > MAX_DOWNLOAD:
        raise ImageError(f"{without_password(url)}: larger than {MAX_DOWNLOAD} bytes")
    return data


def without_password(address: str) -> str:
    """Remove user, password and query, which may be a token, from an address."""
    return re.sub(r"(://)([^/]*@)?([^?]*)(\?.*)?", r"\1\3", address)


def _readable_images(files: list[Path], channels: int) -> Iterator[LoadedImage]:
    for file in files:
        try:
            yield open_image(file, channels)
        except ImageError as error:
            warnings.warn(f"left out: {error}", stacklevel=3)


def _from_array(array: np.ndarray, channels: int) -> Tensor:
    tensor = torch.from_numpy(np.array(array, order="C"))  # a copy, as the array may be read-only
    if tensor.ndim == 3 and tensor.shape[2] == 4 and channels == 3:  # RGBA
        tensor = tensor[:, :, :3]
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor


def _to_uint8(image: Tensor, channels: int) -> Tensor:
    """Convert uint8, uint16 or float in 0…1 to ``(C, H, W)`` uint8; RGB may have one channel."""
    if image.ndim == 2:
        image = image[None]
    if image.numel() == 0:
        raise ImageError("the image is empty: it has no pixels")
    allowed = (1, 3) if channels == 3 else (channels,)
    if image.ndim != 3 or image.shape[0] not in allowed:
        raise ImageError(
            f"expected an image with {' or '.join(map(str, allowed))} channels, got "
            f"{tuple(image.shape)}; a tensor has its channels first, an ndarray last"
        )
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):
            raise ImageError(
                "a float image must lie in 0..1; give the image, not a normalised input"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype == torch.uint16:
        image = high_byte(image)
    if image.dtype != torch.uint8:
        raise ImageError(f"expected an image of uint8, uint16 or float in 0..1, got {image.dtype}")
    return image.expand(channels, -1, -1)
