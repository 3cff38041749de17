"""Images from files, as uint8 tensors ``(C, H, W)``.

Three channels are RGB, one is grey, four are RGB and transparency or those of a TIFF.
"""

import io
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torchvision
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from sepc_zoo.data.headers import JPEG_START, has_end_marker, plain_jpeg_size
from sepc_zoo.data.tiff import is_tiff, read_tiff, tiff_size
from sepc_zoo.errors import UserError

# PIL would print a line for each TIFF whose channels it cannot read.
logging.getLogger("PIL").addHandler(logging.NullHandler())

IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
REDUCTIONS = (8, 4, 2)  # divisors of both sides at which a JPEG can be decoded

# PIL raises these over broken files: SyntaxError for PNG chunks, struct.error for TIFF tags ...
READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


class ImageError(UserError, ValueError):
    """An image file that cannot be read; the message names the file and the reason."""


def read_image(
    path: str | os.PathLike[str], reduction: int = 1, channels: int | None = 3
) -> Tensor:
    """Decode an image file to uint8 ``(C, H, W)``, upright (EXIF orientation applied).

    16-bit samples keep their high byte, an animation gives its first frame.

    Args:
        reduction: 2, 4 or 8 decodes a JPEG at a fraction of its sides, which is faster; see
            ``fitting_reduction``. Other formats are decoded whole.
        channels: 3 gives RGB without transparency, 1 grey, 4 RGB with transparency. A TIFF must
            itself have 4 channels, or any number other than these. None, for drawing: RGB, or all
            channels of a TIFF that has no RGB.

    Raises:
        ImageError: the file is missing, damaged or no image, has float samples or other channels.
    """
    with _naming(path):
        data = Path(path).read_bytes()
    return decode_image(data, path, reduction, channels)


def decode_image(
    data: bytes,
    name: str | os.PathLike[str] = "image",
    reduction: int = 1,
    channels: int | None = 3,
) -> Tensor:
    """Decode the bytes of an image file as ``read_image`` does; ``name`` is for messages."""
    with _naming(name):
        file = io.BytesIO(data)
        if channels not in (1, 3, None) and is_tiff(file):
            return _decode_tiff(file, channels)
        is_jpeg = data.startswith(JPEG_START)
        if is_jpeg and reduction == 1 and channels in (3, None):
            try:  # torchvision's PNG decoder crashes over damaged pixels
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                mode = torchvision.io.ImageReadMode.RGB
                return torchvision.io.decode_image(encoded, mode, apply_exif_orientation=True)
            except (RuntimeError, AttributeError):
                # PIL reads some files that torchvision refuses, and gives better reasons.
                # AttributeError: torchvision has announced to remove this faster decoder.
                pass
        try:
            with Image.open(file) as image:
                if is_jpeg and reduction > 1:
                    image.draft(None, (image.width // reduction, image.height // reduction))
                if channels is None and has_grey_pages(image):
                    return _decode_tiff(file, None)
                return pixels_of_pil(_upright(image), channels)
        except READ_ERRORS as error:
            return _decode_tiff(file, channels, error)


def fitting_reduction(size: tuple[int, int], min_size: tuple[int, int]) -> int:
    """Find the largest divisor of (height, width) that keeps at least ``min_size``: 8, 4, 2 or 1.

    Both sides are divided without a remainder, so that boxes fit to the last bit.
    """
    for reduction in REDUCTIONS:
        sides = zip(size, min_size, strict=True)
        if all(side % reduction == 0 and side >= reduction * least for side, least in sides):
            return reduction
    return 1


def read_size(path: str | os.PathLike[str], upright: bool = True) -> tuple[int, int]:
    """Read the ``(height, width)`` of an image file from its header.

    ``upright`` gives it after the EXIF orientation, as ``read_image`` does; otherwise as stored.

    Raises:
        ImageError: the file is missing or has no header of an image.
    """
    with _naming(path), open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                return _upright_size(image) if upright else (image.height, image.width)
        except Image.UnidentifiedImageError:
            if not is_tiff(file):
                raise
            size, orientation = tiff_size(file)
            return size[::-1] if upright and orientation >= 5 else size


def read_orientation(path: str | os.PathLike[str]) -> int:
    """Read the EXIF orientation 1...8 of an image file from its header; 1 is upright as stored."""
    with _naming(path), open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                return _orientation(image)
        except Image.UnidentifiedImageError:
            if not is_tiff(file):
                raise
            return tiff_size(file)[1]


def check_image(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the upright ``(height, width)`` of an image file, and check that it is complete.

    Cheap enough for a whole data set: a JPEG or PNG with the end marker in its last bytes passes;
    one without it (because bytes were appended, or are missing) and other formats are decoded.

    Raises:
        ImageError: the file is missing, truncated or no image, or has float samples.
    """
    with _naming(path), open(path, "rb") as file:
        if (size := plain_jpeg_size(file)) is not None:
            return size
        file.seek(0)
        try:
            with Image.open(file) as image:
                start = file.tell()  # PIL has read up to the pixels
                if not has_end_marker(file, start):
                    file.seek(start)
                    pixels_of_pil(image)
                return _upright_size(image)
        except READ_ERRORS as error:
            height, width = _decode_tiff(file, None, error).shape[-2:]
            return height, width


def pixels_of_pil(image: Image.Image, channels: int | None = 3) -> Tensor:
    """Convert a PIL image of any mode to uint8 ``(C, H, W)``, as ``read_image`` does.

    Raises:
        ImageError: float samples, whose black and white are unknown, or a number of channels other
            than 1, 3 and 4.
    """
    if image.mode == "F":
        raise ImageError("an image of float samples (mode F); convert it to 8 bits first")
    if image.mode.startswith("I"):  # 16 bits a pixel, which PIL's own conversion may clip
        rgb = high_byte(torch.from_numpy(np.array(image).astype(np.int32))).expand(3, -1, -1)
    else:  # PIL's direct conversion to RGB warns about a palette's transparency
        opaque = image.convert("RGBA") if image.mode == "P" else image
        rgb = torch.from_numpy(np.array(opaque.convert("RGB"))).permute(2, 0, 1)
    if channels == 1:
        grey = Image.fromarray(rgb.permute(1, 2, 0).numpy()).convert("L")
        return torch.from_numpy(np.array(grey))[None]
    if channels == 4:
        alpha = torch.full_like(rgb[:1], 255)
        if image.has_transparency_data:
            alpha[0] = torch.from_numpy(np.array(image.convert("RGBA").getchannel("A")))
        return torch.cat([rgb, alpha])
    if channels not in (3, None):
        raise ImageError(f"the model takes {channels} channels; only a TIFF can have as many")
    return rgb


def has_grey_pages(image: Image.Image) -> bool:
    """Whether a TIFF has pages that are channels, and can be read with them."""
    is_grey = image.mode != "P" and len(image.getbands()) == 1
    is_paged = image.format == "TIFF" and is_grey and getattr(image, "n_frames", 1) > 1
    return is_paged and find_spec("tifffile") is not None


def high_byte(image: Tensor) -> Tensor:
    """Convert 16-bit samples to uint8."""
    return (image.to(torch.int32) >> 8).clamp(0, 255).to(torch.uint8)


def list_images(
    folder: str | os.PathLike[str], suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> list[Path]:
    """List the image files of a folder, by suffix, sorted; without hidden files and sub-folders."""
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of decoding into an ``ImageError`` that names the file."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe might never end
            raise ValueError("is a folder, pipe or device, no file")
        yield
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{os.fspath(path)}: not an image, or of an unknown format") from error
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{os.fspath(path)}: {reason}") from error


def _decode_tiff(file: BinaryIO, channels: int | None, error: Exception | None = None) -> Tensor:
    """Decode a TIFF with tifffile; re-raise PIL's ``error`` unless PIL lacks a mode for it."""
    is_beyond_pil = isinstance(error, Image.UnidentifiedImageError) or "raw mode" in str(error)
    if error and not (is_beyond_pil and is_tiff(file)):
        raise error
    file.seek(0)
    samples, orientation = read_tiff(file)
    if channels not in (None, len(samples)):
        raise ValueError(
            f"has {len(samples)} channels, but the model takes {channels}; to train one for it, "
            f"give --backbone-kwargs in_chans={len(samples)}"
        )
    if samples.dtype.newbyteorder("=") == np.uint16:
        samples = (samples >> 8).astype(np.uint8)
    if samples.dtype != np.uint8:
        raise ValueError(f"an image of {samples.dtype} samples; convert it to 8 bits first")
    if orientation in TRANSPOSES:
        turn = TRANSPOSES[orientation]
        turned = (Image.fromarray(channel).transpose(turn) for channel in samples)
        samples = np.stack([np.asarray(channel) for channel in turned])
    return torch.from_numpy(np.array(samples))


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF orientation, as ``_upright_size`` turns its size."""
    if image.format == "TIFF":
        return ImageOps.exif_transpose(image)
    transpose = TRANSPOSES.get(_orientation(image))
    return image if transpose is None else image.transpose(transpose)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    is_turned = _orientation(image) >= 5
    if is_turned and image.format == "TIFF":  # some versions of PIL turn the size at opening
        image, is_turned = ImageOps.exif_transpose(image), False
    return (image.width, image.height) if is_turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """Get the EXIF orientation 1...8; 1 (upright) where there is none or it cannot be read."""
    if image.format == "TIFF":
        exif = image.getexif()
    else:  # getexif() would decode a whole PNG in search of a block behind the pixels
        exif = Image.Exif()
        try:
            exif.load(image.info.get("exif", b""))
        except (SyntaxError, struct.error):
            return 1
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1
