"""TIFFs of many channels, as tifffile reads them; PIL reads up to four."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, TIFF and BigTIFF
ORIENTATION = 274  # tag


def is_tiff(file: BinaryIO) -> bool:
    """Whether a file starts as a TIFF does; rewinds it."""
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    return start in STARTS


def read_tiff(file: BinaryIO) -> tuple[np.ndarray, int]:
    """Read the channels ``(C, H, W)`` as stored, and the EXIF orientation.

    Pages of one size are channels too.

    Raises:
        ValueError: the file is damaged, has no channels of images, or tifffile is not installed.
    """
    with _first_series(file) as series:
        image, place = series.asarray(), [series.axes.index(axis) for axis in "YX"]
        channels = np.moveaxis(image, place, [-2, -1])
        return channels.reshape(-1, *channels.shape[-2:]), _orientation(series)


def tiff_size(file: BinaryIO) -> tuple[tuple[int, int], int]:
    """Read the ``(height, width)`` as stored, and the EXIF orientation; errors as ``read_tiff``."""
    with _first_series(file) as series:
        height, width = (series.shape[series.axes.index(axis)] for axis in "YX")
        return (height, width), _orientation(series)


def _orientation(series: Any) -> int:
    return int(series.keyframe.tags.valueof(ORIENTATION, 1))


@contextmanager
def _first_series(file: BinaryIO) -> Iterator[Any]:
    try:
        import tifffile
    except ImportError as error:
        hint = 'reading a TIFF of these channels needs tifffile: pip install "sepc_zoo[tiff]"'
        raise ValueError(hint) from error
    try:
        with tifffile.TiffFile(file) as tiff:
            yield tiff.series[0]
    except Exception as error:  # damaged files raise all kinds
        raise ValueError(f"tifffile: {error or type(error).__name__}") from error
