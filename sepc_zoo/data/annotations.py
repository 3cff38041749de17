"""Annotations as plain data: as a reader lists them, and as records after the checks."""

import math
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress, count
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sepc_zoo.data.images import ImageError, check_image, read_size
from sepc_zoo.data.problems import BAD_BOXES, CORRECTED, DataError, Kind, Problem

K = TypeVar("K", bound=Hashable)
BROKEN_IMAGES: frozenset[Kind] = frozenset(("broken image",))
DROPPABLE = BROKEN_IMAGES | BAD_BOXES
IMAGE_HINT = (
    "Broken images can be left out with skip_bad_images (--skip-bad-images), or for good by "
    "`sepc-zoo check-data DIR --fix COPY`."
)
BOX_HINT = "Boxes like these can be left out with drop_bad_boxes (--drop-bad-boxes)."
Size = tuple[int, int]  # height, width


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


class Federation(NamedTuple):
    """What annotations of LVIS say beyond boxes, by the ids of their file.

    Where ``absent`` has images, only some classes are annotated in each: those with boxes, and
    those known to be absent.
    """

    frequency: dict[int, str]  # by category: r, c or f, for rare, common, frequent in training
    absent: dict[int, list[int]]  # by image: categories without any object
    not_exhaustive: dict[int, list[int]]  # by image: categories of which some boxes are missing


@dataclass(frozen=True, eq=False)
class Annotations:
    """A split of a data set: its images, their boxes and the classes."""

    records: tuple[Record, ...]
    label_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]  # the data set's own, by label; None: it lacks the class
    dropped: tuple[Problem, ...] = ()  # one for each box and image left out
    corrected: tuple[Problem, ...] = ()  # what was not as it should be, but could be read
    federation: Federation | None = None  # None: the file is not one of LVIS


class ListedBox(NamedTuple):
    """An unchecked box of an annotation file."""

    where: str  # file and entry, for messages
    xyxy: tuple[float, float, float, float]
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


class Listing(NamedTuple):
    """A split as its annotation files have it, unchecked. Every reader returns one."""

    images: list[ListedImage]
    label_names: Sequence[str]  # the data set's own classes
    category_ids: Sequence[int | None]  # its ids of them
    problems: list[Problem]  # one for each file or entry that cannot be listed
    source: str = ""  # the file that names the classes, for messages
    federation: Federation | None = None


def build_annotations(
    listing: Listing,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
    skip_bad_images: bool = False,
) -> Annotations:
    """Check a listing, clip its boxes to their images, and turn it into records.

    Args:
        listing: As a reader returns it.
        label_names: The classes in the order of their labels; by default the data set's own order.
            A name that the data set lacks gets the category id None.
        drop_bad_boxes: Leave out boxes that are empty, outside their image or not finite, and list
            them in ``dropped``, instead of refusing the data set.
        skip_bad_images: Likewise for images that cannot be decoded, with their boxes.

    Raises:
        DataError: with all problems of the listing, of image files and of boxes.
    """
    listing = relabel(listing, label_names)
    problems = list(listing.problems)
    with ThreadPoolExecutor() as pool:
        checks = list(pool.map(_check_file, listing.images))
    boxes: list[list[ListedBox]] = []
    for image, (size, problem) in zip(listing.images, checks, strict=True):
        problems += [problem] if problem else []
        boxes.append([])
        for box in image.boxes:
            if box.label is None:
                known = f"the {len(listing.label_names)} classes"
                text = f"category {box.category} is not among {known}"
                problems.append(Problem("unknown category", box.where, text))
            clipped = clip_box(box, size)
            if isinstance(clipped, Problem):
                problems.append(clipped)
            else:
                boxes[-1].append(clipped)
    dropped, refused, hints = [], [p for p in problems if p.kind not in DROPPABLE | CORRECTED], []
    for kinds, is_asked, hint in (
        (BROKEN_IMAGES, skip_bad_images, IMAGE_HINT),
        (BAD_BOXES, drop_bad_boxes, BOX_HINT),
    ):
        own = [problem for problem in problems if problem.kind in kinds]
        dropped += own if is_asked else []
        refused += [] if is_asked else own
        hints += [hint] if own and not is_asked else []
    if refused:
        raise DataError(refused, "\n".join(hints))
    corrected = tuple(problem for problem in problems if problem.kind in CORRECTED)
    is_whole = [problem is None or problem.kind in CORRECTED for _, problem in checks]
    sizes = [size or (0, 0) for size, _ in checks]
    images, sizes = [*compress(listing.images, is_whole)], [*compress(sizes, is_whole)]
    records = _make_records(images, sizes, [*compress(boxes, is_whole)])
    names, ids = tuple(listing.label_names), tuple(listing.category_ids)
    listed = tuple(dropped), corrected
    return Annotations(records, names, ids, *listed, federation=listing.federation)


def relabel(listing: Listing, label_names: Sequence[str] | None) -> Listing:
    """Let labels follow ``label_names``; boxes of other classes get the label None.

    Two classes of one name become a problem: boxes of one would be taken for the other's.
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
    new_label: dict[int | None, int | None] = {
        label: label_of.get(name) for label, name in enumerate(listing.label_names)
    }
    images = [
        image._replace(boxes=[box._replace(label=new_label.get(box.label)) for box in image.boxes])
        for image in listing.images
    ]
    ids = [id_of.get(name) for name in names]
    return listing._replace(images=images, label_names=names, category_ids=ids, problems=problems)


def find_duplicates(keys: Iterable[K]) -> list[K]:
    """Name each key that comes more than once, in order of first appearance."""
    return [key for key, number in Counter(keys).items() if number > 1]


def unite_classes(listings: Iterable[Listing]) -> dict[str, int]:
    """Find the classes of all listings by name, in order of first appearance, with unique ids.

    A class keeps its first category id unless another class has it already.
    """
    wanted: dict[str, int | None] = {}
    for listing in listings:
        for name, category_id in zip(listing.label_names, listing.category_ids, strict=True):
            wanted.setdefault(name, category_id)
    return unique_ids(wanted)


def unique_ids(wanted: Mapping[K, int | None]) -> dict[K, int]:
    """Give each key the id it wants, or a new one where it wants none or an earlier key has it."""
    owner: dict[int, K] = {}
    for key, wish in wanted.items():
        if wish is not None:
            owner.setdefault(wish, key)
    free = count(max(owner, default=0) + 1)
    return {
        key: wish if wish is not None and owner[wish] == key else next(free)
        for key, wish in wanted.items()
    }


def image_problem(path: Path, error: Exception) -> Problem:
    """Describe an image file that cannot be read."""
    reason = str(error).removeprefix(f"{path}: ")
    return Problem("broken image" if os.path.exists(path) else "missing image", str(path), reason)


def size_text(size: Size | None) -> str:
    return f"{size[1]}x{size[0]} (width x height)" if size else "of unknown size"


def clip_box(box: ListedBox, size: Size | None) -> ListedBox | Problem:
    """Clip a box to its image and fill in ``bbox``; a box with nothing inside is a problem."""
    height, width = size or (math.inf, math.inf)
    x1, y1, x2, y2 = box.xyxy
    if not all(map(math.isfinite, box.xyxy)):
        text = f"box {box.xyxy} has coordinates that are not finite"
        return Problem("box not finite", box.where, text)
    if x2 <= x1 or y2 <= y1:
        text = f"box {box.xyxy} has no positive width and height"
        return Problem("box without area", box.where, text)
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        text = f"box {box.xyxy} lies outside the {width}x{height} image"
        return Problem("box outside the image", box.where, text)
    if clipped == box.xyxy and box.bbox:
        return box
    # x + width - x is not exactly the width, and metrics compare overlaps with a threshold
    return box._replace(xyxy=clipped, bbox=box.bbox or (x1, y1, x2 - x1, y2 - y1))


def _check_file(image: ListedImage) -> tuple[Size | None, Problem | None]:
    """Compare an image file with its annotation; return its size and what is wrong."""
    try:
        size = check_image(image.path)
        if image.size in (None, size):
            return size, None
        return size, size_problem(image, size, read_size(image.path, upright=False))
    except ImageError as error:
        return image.size, image_problem(image.path, error)


def size_problem(image: ListedImage, size: Size, stored: Size) -> Problem:
    """Describe an annotated size that is not the upright or the stored one of the file."""
    text = f"annotated as {size_text(image.size)}, but the image is {size_text(size)}"
    if image.size == size[::-1] and size == stored and fit(image.boxes, size):
        return Problem("size swapped", str(image.path), text)
    if image.size == stored:
        text += " after its EXIF rotation (the annotation has the size before it)"
        return Problem("size before EXIF rotation", str(image.path), text)
    if size != stored:
        text += f" after its EXIF rotation ({size_text(stored)} before it)"
    return Problem("wrong size", str(image.path), text)


def fit(boxes: Sequence[ListedBox], size: Size) -> bool:
    """Whether boxes end inside an image, or not more than a pixel beyond."""
    return all(box.xyxy[2] <= size[1] + 1 and box.xyxy[3] <= size[0] + 1 for box in boxes)


def _make_records(
    images: Sequence[ListedImage], sizes: Sequence[Size], boxes: Sequence[list[ListedBox]]
) -> tuple[Record, ...]:
    # One tensor for all images, then a view for each: many times faster than a tensor for each.
    counts = [len(image_boxes) for image_boxes in boxes]
    flat = [box for image_boxes in boxes for box in image_boxes]
    columns = (
        torch.tensor([box.xyxy for box in flat], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([box.label for box in flat], dtype=torch.int64),
        torch.tensor([box.iscrowd for box in flat], dtype=torch.int64),
        torch.tensor([box.area for box in flat], dtype=torch.float64),
        torch.tensor([box.bbox for box in flat], dtype=torch.float64).reshape(-1, 4),
    )
    parts = (column.split(counts) for column in columns)
    return tuple(
        Record(image.image_id, image.path, size, *tensors)
        for image, size, *tensors in zip(images, sizes, *parts, strict=True)
    )
