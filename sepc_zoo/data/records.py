"""The checked images of a split as columns, which the processes of a machine share."""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from multiprocessing import reduction
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any, overload
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepc_zoo.errors import UserError

Size = tuple[int, int]  # height, width
Place = tuple[str, tuple[int, ...], int]  # dtype, shape and offset of a column in a file

ALIGNMENT = 64  # bytes


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its G boxes."""

    image_id: int
    path: Path
    size: Size  # height and width of the upright image, pixels
    boxes: Tensor  # (G, 4) float32, xyxy pixels, clipped to the image
    labels: Tensor  # (G,) int64, 0...K-1
    iscrowd: Tensor  # (G,) int64, 1: neither learned nor counted as one object
    area: Tensor  # (G,) float64, pixels, as annotated
    bbox: Tensor  # (G, 4) float64, x, y, width, height as annotated, unclipped; metrics use it


@dataclass(frozen=True, eq=False)
class Records(Sequence[Record]):
    """N images and their G boxes as columns; indexing builds a ``Record``.

    Pickled for another process, such as a worker of a loader, they are not copied: the process maps
    a temporary file, which has no name and is gone with the last process that uses it.
    """

    image_ids: NDArray[np.int64]  # (N,)
    sizes: NDArray[np.int64]  # (N, 2) height and width, pixels
    paths: NDArray[np.uint8]  # all paths in UTF-8, one after the other
    path_starts: NDArray[np.int64]  # (N + 1,)
    starts: NDArray[np.int64]  # (N + 1,) the boxes of image i are the rows from starts[i] on
    boxes: NDArray[np.float32]  # (G, 4), and so on as in ``Record``
    labels: NDArray[np.int64]  # (G,)
    iscrowd: NDArray[np.int64]  # (G,)
    area: NDArray[np.float64]  # (G,)
    bbox: NDArray[np.float64]  # (G, 4)

    @classmethod
    def make(
        cls,
        image_ids: Sequence[int],
        sizes: Sequence[Size],
        paths: Sequence[str | os.PathLike[str]],
        counts: Sequence[int] | NDArray[np.int64],
        *boxes: Any,
    ) -> "Records":
        """Convert columns of images, and of their boxes, to arrays.

        Args:
            counts: number of boxes of each image.
            boxes: boxes, labels, iscrowd, area and bbox, image by image.
        """
        encoded = [os.fspath(path).encode("utf-8", "surrogatepass") for path in paths]
        dtypes: tuple[Any, ...] = (np.float32, np.int64, np.int64, np.float64, np.float64)
        columns: list[NDArray[Any]] = [
            np.asarray(column, dtype) for column, dtype in zip(boxes, dtypes, strict=True)
        ]
        columns[0], columns[4] = columns[0].reshape(-1, 4), columns[4].reshape(-1, 4)
        return cls(
            np.array(image_ids, dtype=np.int64),
            np.array(sizes, dtype=np.int64).reshape(-1, 2),
            np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8),
            _starts([len(path) for path in encoded]),
            _starts(counts),
            *columns,
        )

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Records":
        """Gather records; ``Records`` stay as they are."""
        if isinstance(records, Records):
            return records
        names = [field.name for field in fields(Record)][3:]
        columns = [[getattr(record, name).numpy() for record in records] for name in names]
        return cls.make(
            [record.image_id for record in records],
            [record.size for record in records],
            [record.path for record in records],
            [len(record.labels) for record in records],
            *(np.concatenate(column) if column else [] for column in columns),
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        i = range(len(self))[index]
        own = slice(self.starts[i], self.starts[i + 1])
        height, width = self.sizes[i].tolist()
        return Record(
            int(self.image_ids[i]),
            self.path(i),
            (height, width),
            *(torch.from_numpy(column[own]) for column in self.columns()),
        )

    @property
    def image(self) -> NDArray[np.int64]:
        """Index of the image of each box ``(G,)``."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def columns(self) -> tuple[NDArray[Any], ...]:
        """The columns of the boxes, in the order of ``Record``."""
        return self.boxes, self.labels, self.iscrowd, self.area, self.bbox

    def path(self, i: int) -> Path:
        text = self.paths[self.path_starts[i] : self.path_starts[i + 1]].tobytes()
        return Path(text.decode("utf-8", "surrogatepass"))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Records":
        """Copy the images at ``indices``, in this order."""
        chosen = np.array(indices, dtype=np.int64)
        letters, path_starts = rows_of(self.path_starts, chosen)
        rows, starts = rows_of(self.starts, chosen)
        return Records(
            self.image_ids[chosen],
            self.sizes[chosen],
            self.paths[letters],
            path_starts,
            starts,
            *(column[rows] for column in self.columns()),
        )

    def write(self, file: IO[bytes]) -> list[Place]:
        """Write the columns to a file; return what ``map_records`` needs to find them there."""
        places = []
        try:
            for field in fields(self):
                column = getattr(self, field.name)
                file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
                places.append((column.dtype.str, column.shape, file.tell()))
                file.write(np.ascontiguousarray(column).data)
            file.truncate(file.tell())  # empty columns end there too
            file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write the annotations to {gettempdir()}: {error.strerror}. Set TMPDIR to "
                "a folder with more space"
            ) from error
        return places


def map_records(file: IO[bytes], places: Sequence[Place]) -> Records:
    """Map records that were written to a file; a process does not see what another changes."""
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return Records(*(np.ndarray(shape, dtype, memory, offset) for dtype, shape, offset in places))


# Files of the records that were handed to another process.
_FILES: "WeakKeyDictionary[Records, tuple[IO[bytes], list[Place]]]" = WeakKeyDictionary()


def _reduce(records: Records) -> tuple[Any, ...]:
    if records not in _FILES:
        file: IO[bytes] = TemporaryFile()  # noqa: SIM115  # stays open as long as the records
        _FILES[records] = file, records.write(file)
    file, places = _FILES[records]
    return _attach, (reduction.DupFd(file.fileno()), places)


def _attach(duplicate: Any, places: Sequence[Place]) -> Records:
    with os.fdopen(duplicate.detach(), "rb") as file:
        return map_records(file, places)


if hasattr(reduction, "DupFd"):  # Windows hands over copies
    reduction.ForkingPickler.register(Records, _reduce)


def _starts(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def rows_of(
    starts: NDArray[np.int64], chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the rows of the chosen images, and where each image starts among them."""
    counts = np.diff(starts)[chosen]
    new_starts = _starts(counts)
    shift = np.repeat(starts[:-1][chosen] - new_starts[:-1], counts)
    return np.arange(new_starts[-1]) + shift, new_starts
