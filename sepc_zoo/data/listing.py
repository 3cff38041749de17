"""Annotations as a reader lists them: plain data, unchecked."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sepc_zoo.data.problems import Problem
from sepc_zoo.data.records import Size, rows_of

K = TypeVar("K", bound=Hashable)


class Federation(NamedTuple):
    """The facts that annotations of LVIS state beside boxes, by the ids of their file.

    An image in ``absent`` is annotated for some classes only: those with boxes, and those that are
    known to be absent.
    """

    frequency: dict[int, str]  # by category: r, c or f, for rare, common, frequent in training
    absent: dict[int, list[int]]  # by image: categories without any object
    not_exhaustive: dict[int, list[int]]  # by image: categories of which some boxes are missing


class ListedBox(NamedTuple):
    """An unchecked box of an annotation file."""

    where: str  # file and entry, for messages
    xyxy: tuple[float, ...]
    label: int | None  # None: its category is not among the classes
    category: str  # name or id as in the file, for messages
    iscrowd: int
    area: float
    bbox: tuple[float, ...] | None = None  # x, y, width, height where the file has these


class ListedImage(NamedTuple):
    """An unchecked image of an annotation file."""

    image_id: int
    path: Path
    size: Size | None  # None: the file does not say
    boxes: list[ListedBox]


class BoxColumns(NamedTuple):
    """G unchecked boxes as columns."""

    xyxy: NDArray[np.float64]  # (G, 4)
    labels: NDArray[np.int64]  # (G,), -1: the category is not among the classes
    iscrowd: NDArray[np.int64]  # (G,)
    area: NDArray[np.float64]  # (G,)
    bbox: NDArray[np.float64]  # (G, 4)

    def only(self, rows: NDArray[Any]) -> "BoxColumns":
        """Choose rows by a mask or by indices."""
        return BoxColumns._make(column[rows] for column in self)


@dataclass(frozen=True, eq=False)
class ListedImages(Sequence[ListedImage]):
    """Listed images with their boxes as columns; indexing builds a ``ListedImage``."""

    files: Sequence[ListedImage]  # the images; their own ``boxes`` are ignored
    counts: NDArray[np.int64]  # (N,) numbers of boxes
    boxes: BoxColumns
    describe: Callable[[int], tuple[str, str]]  # where a box is listed, and its category

    @classmethod
    def of(cls, images: Sequence[ListedImage]) -> "ListedImages":
        """Gather the boxes of images in columns; ``ListedImages`` stay as they are."""
        if isinstance(images, ListedImages):
            return images
        boxes = [box for image in images for box in image.boxes]
        columns = BoxColumns(
            np.array([box.xyxy for box in boxes], dtype=np.float64).reshape(-1, 4),
            np.array([-1 if box.label is None else box.label for box in boxes], dtype=np.int64),
            np.array([box.iscrowd for box in boxes], dtype=np.int64),
            np.array([box.area for box in boxes], dtype=np.float64),
            np.array([b.bbox or xywh(*b.xyxy) for b in boxes], dtype=np.float64).reshape(-1, 4),
        )
        counts = np.array([len(image.boxes) for image in images], dtype=np.int64)
        return cls(images, counts, columns, lambda row: (boxes[row].where, boxes[row].category))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        end = int(self.ends[index])
        rows = range(end - int(self.counts[index]), end)
        return self.files[index]._replace(boxes=[self.box(row) for row in rows])

    def box(self, row: int) -> ListedBox:
        where, category = self.describe(row)
        xyxy, label, iscrowd, area, bbox = (column[row].tolist() for column in self.boxes)
        label = None if label < 0 else label
        return ListedBox(where, tuple(xyxy), label, category, iscrowd, area, tuple(bbox))

    def take(self, indices: Sequence[int]) -> "ListedImages":
        """Choose the images at ``indices``, in this order."""
        chosen = np.array(indices, dtype=np.int64)
        rows, _ = rows_of(np.append(0, self.ends), chosen)
        return ListedImages(
            [self.files[i] for i in indices],
            self.counts[chosen],
            self.boxes.only(rows),
            lambda row: self.describe(int(rows[row])),
        )

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Row after the last box of each image ``(N,)``."""
        return np.cumsum(self.counts)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Height and width ``(N, 2)`` of images whose sizes are known, pixels."""
        return np.array([file.size for file in self.files], dtype=np.int64).reshape(-1, 2)

    @cached_property
    def box_sizes(self) -> NDArray[np.float64]:
        """Height and width ``(G, 2)`` of the boxes, pixels."""
        return (self.boxes.xyxy[:, 2:] - self.boxes.xyxy[:, :2])[:, ::-1]

    @cached_property
    def image(self) -> NDArray[np.int64]:
        """Index of the image of each box ``(G,)``."""
        return np.repeat(np.arange(len(self)), self.counts)


class Listing(NamedTuple):
    """A split as its annotation files state it, unchecked; what every reader returns."""

    images: Sequence[ListedImage]
    label_names: Sequence[str]  # the data set's own classes
    category_ids: Sequence[int | None]  # their ids in the data set
    problems: list[Problem]  # one for each file or entry that cannot be listed
    source: str = ""  # the file that names the classes, for messages
    federation: Federation | None = None


Splits = Mapping[str, Callable[[], Listing]]  # a function for each split that lists it


def relabel(listing: Listing, label_names: Sequence[str] | None) -> Listing:
    """Renumber labels by the order of ``label_names``; boxes of other classes get the label None.

    Two classes of one name are a problem, as their boxes could not be told apart.
    """
    names = listing.label_names if label_names is None else label_names
    problems = listing.problems + [
        Problem("two classes of one name", listing.source, f"two classes are named {name!r}")
        for name in find_duplicates(listing.label_names)
        if name in names
    ]
    if label_names is None:
        return listing._replace(problems=problems)
    id_of = dict(zip(listing.label_names, listing.category_ids, strict=True))
    label_of = {name: label for label, name in enumerate(names)}
    new_label = [label_of.get(name, -1) for name in listing.label_names]
    images = ListedImages.of(listing.images)
    labels = np.array([*new_label, -1])[images.boxes.labels]  # the last is that of -1
    return listing._replace(
        images=replace(images, boxes=images.boxes._replace(labels=labels)),
        label_names=names,
        category_ids=[id_of.get(name) for name in names],
        problems=problems,
    )


def find_duplicates(keys: Iterable[K]) -> list[K]:
    """List each key that occurs more than once, in order of first appearance."""
    return [key for key, number in Counter(keys).items() if number > 1]


def unite_classes(listings: Iterable[Listing]) -> dict[str, int]:
    """Collect the classes of all listings by name, in order of first appearance, with unique ids.

    A class keeps its first category id unless another class has it already.
    """
    wanted: dict[str, int | None] = {}
    for listing in listings:
        for name, category_id in zip(listing.label_names, listing.category_ids, strict=True):
            wanted.setdefault(name, category_id)
    return unique_ids(wanted)


def unique_ids(wanted: Mapping[K, int | None]) -> dict[K, int]:
    """Give each key the id it wants, or a new one if it wants none or an earlier key has it."""
    owner: dict[int, K] = {}
    for key, wish in wanted.items():
        if wish is not None:
            owner.setdefault(wish, key)
    free = count(max(owner, default=0) + 1)
    return {
        key: wish if wish is not None and owner[wish] == key else next(free)
        for key, wish in wanted.items()
    }


def xywh(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
    return x1, y1, x2 - x1, y2 - y1
