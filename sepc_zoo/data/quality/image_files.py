"""Image files, decoded as training does: sizes, a digest of the pixels, and what is wrong."""

import hashlib
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sepc_zoo.data.annotations import Size, image_problem
from sepc_zoo.data.images import ImageError, check_image, has_grey_pages, read_image, read_size
from sepc_zoo.data.problems import Problem
from sepc_zoo.data.tiff import read_tiff

MIN_BRIGHTEST = 16  # of 255; an image without such a pixel is nearly black


class DecodedFile(NamedTuple):
    """The result of decoding an image file."""

    size: Size | None  # upright; None: it cannot be decoded
    stored: Size | None  # before its EXIF rotation
    digest: bytes  # digest of the upright pixels
    problem: Problem | None = None
    dark: str = ""  # how bright it is, if it is nearly black


def inspect_image(path: Path) -> DecodedFile:
    """Decode an image file as training does, and digest its pixels."""
    try:
        check_image(path)
        size, stored = read_size(path), read_size(path, upright=False)
        pixels = read_image(path, channels=None).contiguous().numpy()
    except ImageError as error:
        return DecodedFile(None, None, b"", image_problem(path, error))
    except Exception as error:  # decoders may raise anything; one bad file never stops the others
        text = f"{type(error).__name__}: {error}"
        return DecodedFile(None, None, b"", Problem("broken image", str(path), text))
    digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
    digest.update(pixels.data)
    brightest = int(pixels.max())
    dark = _describe_dark(path, brightest) if brightest < MIN_BRIGHTEST else ""
    return DecodedFile(size, stored, digest.digest(), dark=dark)


def _describe_dark(path: Path, brightest: int) -> str:
    """Describe a nearly black image, and whether its samples use fewer bits than they could."""
    text, top = f"no pixel is brighter than {brightest} of 255", _brightest_sample(path)
    if not top:
        return text
    return (
        f"{text}: its 16-bit samples end at {top}, and are read as 0 to 65535; if they have "
        f"{top.bit_length()} bits, multiply them by {2 ** (16 - top.bit_length())}"
    )


def _brightest_sample(path: Path) -> int:
    """The largest 16-bit sample of an image file; 0 if it has other samples."""
    with suppress(Image.UnidentifiedImageError), Image.open(path) as image:
        if not image.mode.startswith("I"):
            return 0
        if not has_grey_pages(image):
            return int(np.asarray(image).max())
    with path.open("rb") as file:
        samples, _ = read_tiff(file)
    return int(samples.max()) if samples.itemsize > 1 else 0


def picture_key(path: Path, files: Mapping[Path, DecodedFile]) -> Hashable:
    """Identify a picture by its pixels, or by its path if it cannot be decoded."""
    return files[path].digest or path
