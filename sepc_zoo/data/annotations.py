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

from sepc_zoo.errors import UserError
from sepc_zoo.ops.image import ImageError, check_image, read_size

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


def build_annotations(
    images: Sequence[ListedImage],
    label_names: Sequence[str],
    category_ids: Sequence[int | None],
    problems: Iterable[str] = (),
    drop_bad_boxes: bool = False,
) -> Annotations:
    """Check what a reader has listed, clip the boxes to their images and make records of it.

    ``problems`` are those that the reader itself has met. With ``drop_bad_boxes``, boxes that are
    empty, outside their image or not finite are left out and told in ``dropped``.

    Raises:
        DataError: with every problem of the reader's, the image files' and the boxes'.
    """
    problems = list(problems)
    with ThreadPoolExecutor() as pool:
        checks = list(pool.map(_check_file, images))
    problems += [problem for _, problem in checks if problem]

    bad_boxes: list[str] = []
    kept: list[list[ListedBox]] = []
    for image, (size, _) in zip(images, checks, strict=True):
        problems += [
            f"{box.where}: category {box.category} is not among the {len(label_names)} classes"
            for box in image.boxes
            if box.label is None
        ]
        kept.append(_check_boxes(image.boxes, size, bad_boxes))

    if problems or (bad_boxes and not drop_bad_boxes):
        hint = "Boxes like these can be left out with drop_bad_boxes." if bad_boxes else ""
        raise DataError(problems + ([] if drop_bad_boxes else bad_boxes), hint)
    sizes = [size for size, _ in checks if size is not None]
    records = _make_records(images, sizes, kept)
    return Annotations(records, tuple(label_names), tuple(category_ids), tuple(bad_boxes))


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


def _check_boxes(
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
