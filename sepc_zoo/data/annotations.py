"""The plain data that every reader returns, and the checks that all of them share."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sepc_zoo.data.images import ImageError, check_image, read_size
from sepc_zoo.errors import UserError

SHOWN_PROBLEMS = 50


class DataError(UserError, ValueError):
    """A data set that cannot be used as it is; ``problems`` has one line per broken file or entry.

    The message shows the first of them and counts the rest, then says ``hint``.
    """

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        super().__init__(problems, hint)
        self.problems = tuple(problems)
        self.hint = hint

    def __str__(self) -> str:
        lines = list(self.problems[:SHOWN_PROBLEMS])
        if len(self.problems) > SHOWN_PROBLEMS:
            lines.append(f"... and {len(self.problems) - SHOWN_PROBLEMS} more problems")
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its boxes as annotated."""

    image_id: int
    path: Path
    size: tuple[int, int]  # (height, width) of the upright image
    boxes: Tensor  # (G, 4) float32, xyxy pixels, inside the image
    labels: Tensor  # (G,) int64, 0...K-1
    iscrowd: Tensor  # (G,) int64, 1 where the box is not to be learned or counted as one object
    area: Tensor  # (G,) float64, pixels, as annotated
    bbox: Tensor  # (G, 4) float64, COCO's x, y, width, height as annotated, unclipped: for metrics


@dataclass(frozen=True, eq=False)
class Annotations:
    """A split of a data set: its images and boxes, and what its labels mean."""

    records: tuple[Record, ...]
    label_names: tuple[str, ...]
    category_ids: tuple[
        int | None, ...
    ]  # the data set's own ids by label; None: it has no such class
    dropped: tuple[str, ...] = ()  # one line per box left out


class ListedBox(NamedTuple):
    """A box as it stands in the annotation file, unchecked."""

    where: str  # file and entry, for messages
    xyxy: tuple[float, float, float, float]
    label: int | None  # None: a category that is not among the classes
    category: str  # as the file calls it, for messages
    iscrowd: int
    area: float
    bbox: tuple[float, ...] | None = None  # x, y, width, height where the file has it so


class ListedImage(NamedTuple):
    """An image as it stands in the annotation file, unchecked."""

    image_id: int
    path: Path
    size: tuple[int, int] | None  # (height, width); None: the file does not say
    boxes: list[ListedBox]


class Listing(NamedTuple):
    """A split as its annotation files have it, unchecked: what every reader returns."""

    images: list[ListedImage]
    label_names: Sequence[str]  # the data set's own classes
    category_ids: Sequence[int | None]  # its own ids of them
    problems: list[str]  # one line per file or entry that could not be listed
    source: str = ""  # what names the classes, for messages
    bad_boxes: Sequence[str] = ()  # one line per box that could not be listed, but can be left out


def build_annotations(
    listing: Listing,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
) -> Annotations:
    """Check what a reader has listed, clip the boxes to their images and make records of it.

    Labels follow ``label_names``, found by name, or the data set's own order. Names that it does
    not have get the category id None. With ``drop_bad_boxes``, boxes that are empty, outside their
    image or not finite are left out and told in ``dropped``.

    Raises:
        DataError: with every problem of the reader's, the image files' and the boxes'.
    """
    listing = relabel(listing, label_names)
    problems = list(listing.problems)
    with ThreadPoolExecutor() as pool:
        checks = list(pool.map(_check_file, listing.images))
    problems += [problem for _, problem in checks if problem]

    bad_boxes = list(listing.bad_boxes)
    kept: list[list[ListedBox]] = []
    for image, (size, _) in zip(listing.images, checks, strict=True):
        problems += [
            f"{box.where}: category {box.category} is not among the "
            f"{len(listing.label_names)} classes"
            for box in image.boxes
            if box.label is None
        ]
        kept.append(check_boxes(image.boxes, size, bad_boxes))

    if problems or (bad_boxes and not drop_bad_boxes):
        hint = "Boxes like these can be left out with drop_bad_boxes." if bad_boxes else ""
        raise DataError(problems + ([] if drop_bad_boxes else bad_boxes), hint)
    sizes = [size for size, _ in checks if size is not None]
    records = _make_records(listing.images, sizes, kept)
    names, ids = tuple(listing.label_names), tuple(listing.category_ids)
    return Annotations(records, names, ids, tuple(bad_boxes))


def relabel(listing: Listing, label_names: Sequence[str] | None) -> Listing:
    """The same images with labels that follow ``label_names``; None where a box has no such class.

    Two classes of one name are a problem, as boxes of the one would be taken for the other's.
    """
    names = listing.label_names if label_names is None else label_names
    problems = listing.problems + [
        f"{listing.source}: two classes are named {name!r}"
        for name in find_duplicates(listing.label_names)
        if name in names
    ]
    if label_names is None:
        return listing._replace(problems=problems)
    id_of = dict(zip(listing.label_names, listing.category_ids, strict=True))
    label_of = {name: label for label, name in enumerate(names)}
    new_label = [label_of.get(name) for name in listing.label_names]
    images = [
        image._replace(
            boxes=[
                box if box.label is None else box._replace(label=new_label[box.label])
                for box in image.boxes
            ]
        )
        for image in listing.images
    ]
    ids = [id_of.get(name) for name in names]
    return listing._replace(images=images, label_names=names, category_ids=ids, problems=problems)


def find_duplicates(keys: Iterable[Hashable]) -> list[Hashable]:
    """The keys that come more than once, each named once, in order of first appearance."""
    return [key for key, count in Counter(keys).items() if count > 1]


def _check_file(image: ListedImage) -> tuple[tuple[int, int] | None, str]:
    """The size of the image file and the problem with it ("" where there is none)."""
    try:
        size = check_image(image.path)
        if image.size is None or image.size == size:
            return size, ""
        stored = read_size(image.path, upright=False)
    except ImageError as error:
        return image.size, str(error)
    problem = f"{image.path}: annotated as {_text(image.size)}, but the image is {_text(size)}"
    if image.size == stored:
        problem += " after its EXIF rotation (the annotation has the size before it)"
    elif size != stored:
        problem += f" after its EXIF rotation ({_text(stored)} before it)"
    return size, problem


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} (width x height)"


def check_boxes(
    boxes: list[ListedBox], size: tuple[int, int] | None, bad_boxes: list[str]
) -> list[ListedBox]:
    """The good boxes, clipped to the image; a line for each bad one goes to ``bad_boxes``."""
    height, width = size or (math.inf, math.inf)
    kept = []
    for box in boxes:
        x1, y1, x2, y2 = box.xyxy
        clipped = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
        if not all(map(math.isfinite, box.xyxy)):
            bad_boxes.append(f"{box.where}: box {box.xyxy} has coordinates that are not finite")
        elif x2 <= x1 or y2 <= y1:
            bad_boxes.append(f"{box.where}: box {box.xyxy} has no positive width and height")
        elif clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            bad_boxes.append(f"{box.where}: box {box.xyxy} lies outside the {width}x{height} image")
        else:
            # x + width - x is not quite the width: an overlap would miss the threshold it is at
            bbox = box.bbox or (x1, y1, x2 - x1, y2 - y1)
            kept.append(box._replace(xyxy=clipped, bbox=bbox))
    return kept


def _make_records(
    images: Sequence[ListedImage],
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[list[ListedBox]],
) -> tuple[Record, ...]:
    # One tensor for all images, then a view for each: many times faster than a tensor for each.
    counts = [len(image_boxes) for image_boxes in boxes]
    flat = [box for image_boxes in boxes for box in image_boxes]
    xyxy = torch.tensor([box.xyxy for box in flat], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([box.label for box in flat], dtype=torch.int64)
    iscrowd = torch.tensor([box.iscrowd for box in flat], dtype=torch.int64)
    area = torch.tensor([box.area for box in flat], dtype=torch.float64)
    bbox = torch.tensor([box.bbox for box in flat], dtype=torch.float64).reshape(-1, 4)
    columns = (column.split(counts) for column in (xyxy, labels, iscrowd, area, bbox))
    return tuple(
        Record(image.image_id, image.path, size, *tensors)
        for image, size, *tensors in zip(images, sizes, *columns, strict=True)
    )
