"""Annotations: the records of a listing whose image files and boxes have been checked."""

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sepc_zoo.data.images import ImageError, check_image, read_size
from sepc_zoo.data.listing import (
    Federation,
    ListedBox,
    ListedImage,
    ListedImages,
    Listing,
    relabel,
    xywh,
)
from sepc_zoo.data.problems import BAD_BOXES, CORRECTED, DataError, Kind, Problem
from sepc_zoo.data.records import Record as Record
from sepc_zoo.data.records import Records as Records
from sepc_zoo.data.records import Size as Size
from sepc_zoo.terminal import shorten

BROKEN_IMAGES: frozenset[Kind] = frozenset(("broken image",))
DROPPABLE = BROKEN_IMAGES | BAD_BOXES
IMAGE_HINT = (
    "Broken images can be left out with skip_bad_images (--skip-bad-images), or for good by "
    "`sepc-zoo check-data DIR --fix COPY`."
)
BOX_HINT = "Boxes like these can be left out with drop_bad_boxes (--drop-bad-boxes)."

NUM_PROBED = 256  # files after which it is decided whether to check the rest in threads
SLOW_FILE = 5e-4  # seconds that the check of a file takes at least where threads help


@dataclass(frozen=True, eq=False)
class Annotations:
    """A split of a data set: its images, their boxes and the classes."""

    records: Records  # any sequence of records becomes one
    label_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]  # the data set's own, by label; None: it lacks the class
    dropped: tuple[Problem, ...] = ()  # one for each box and image left out
    corrected: tuple[Problem, ...] = ()  # problems that a reader has corrected
    federation: Federation | None = None  # None: the file is not one of LVIS
    note: str = ""  # how its images were chosen, where it is not one of the data set's own splits

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", Records.of(self.records))


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
        skip_bad_images: Leave out images that cannot be decoded, with their boxes, in the same way.

    Raises:
        DataError: with all problems of the listing, of image files and of boxes.
    """
    listing = relabel(listing, label_names)
    images = ListedImages.of(listing.images)
    checks = check_files(images)
    sizes, num_classes = [size for size, _ in checks], len(listing.label_names)
    clipped, is_good, found = check_boxes(images, sizes, num_classes)
    found += [(i, -1, problem) for i, (_, problem) in enumerate(checks) if problem]
    problems = listing.problems + [p for _, _, p in sorted(found, key=itemgetter(0, 1))]
    dropped, refused, hints = [], [p for p in problems if p.kind not in DROPPABLE | CORRECTED], []
    for kinds, is_asked, hint in (
        (BROKEN_IMAGES, skip_bad_images, IMAGE_HINT),
        (BAD_BOXES, drop_bad_boxes, BOX_HINT),
    ):
        own = [problem for problem in problems if problem.kind in kinds]
        dropped += own if is_asked else []
        refused += [] if is_asked else own
        hints += [hint] if own and not is_asked else []
    if label_names is not None and any(p.kind == "unknown category" for p in refused):
        hints.append(f"The model or the training split has the classes {shorten(label_names)}.")
    if refused:
        raise DataError(refused, "\n".join(hints))
    records = Records.make(
        [file.image_id for file in images.files],
        [size or (0, 0) for size in sizes],
        [file.path for file in images.files],
        np.bincount(images.image[is_good], minlength=len(images)),
        *images.boxes._replace(xyxy=clipped).only(is_good),
    )
    is_whole = [problem is None or problem.kind in CORRECTED for _, problem in checks]
    if not all(is_whole):
        records = records.take(np.flatnonzero(is_whole))
    return Annotations(
        records,
        tuple(listing.label_names),
        tuple(listing.category_ids),
        tuple(dropped),
        tuple(problem for problem in problems if problem.kind in CORRECTED),
        listing.federation,
    )


def image_problem(path: Path, error: Exception) -> Problem:
    reason = str(error).removeprefix(f"{path}: ")
    return Problem("broken image" if os.path.exists(path) else "missing image", str(path), reason)


def size_text(size: Size | None) -> str:
    return f"{size[1]}x{size[0]} (width x height)" if size else "of unknown size"


def clip_box(box: ListedBox, size: Size | None) -> ListedBox | Problem:
    """Clip a box to its image and fill in ``bbox``; a box with nothing inside is a problem."""
    height, width = size or (math.inf, math.inf)
    kind: Kind
    x1, y1, x2, y2 = box.xyxy
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if not all(map(math.isfinite, box.xyxy)):
        kind, reason = "box not finite", "has coordinates that are not finite"
    elif x2 <= x1 or y2 <= y1:
        kind, reason = "box without area", "has no positive width and height"
    elif clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        kind, reason = "box outside the image", f"lies outside the {width}x{height} image"
    else:
        # x + width - x is not exactly the width, and metrics compare overlaps with a threshold
        return box._replace(xyxy=clipped, bbox=box.bbox or xywh(*box.xyxy))
    return Problem(kind, box.where, f"box {box.xyxy} {reason}")


def check_boxes(
    images: ListedImages, sizes: Sequence[Size | None], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[tuple[int, int, Problem]]]:
    """Clip all boxes to their images.

    Returns:
        The clipped boxes ``(G, 4)``, which of them ``(G,)`` are good, and the problems of
        ``clip_box`` and of unknown categories, each with the indices of its image and box.
    """
    limits = np.array([size or (np.inf, np.inf) for size in sizes]).reshape(-1, 2)[images.image]
    clipped = np.clip(images.boxes.xyxy, 0, limits[:, [1, 0, 1, 0]])
    both = np.stack([images.boxes.xyxy, clipped])  # 2, G, 4
    is_finite, has_area = np.isfinite(both), both[..., 2:] > both[..., :2]
    is_good = np.logical_and(is_finite.all(axis=(0, 2)), has_area.all(axis=(0, 2)))
    found: list[tuple[int, int, Problem]] = []
    for row in np.flatnonzero((images.boxes.labels < 0) | ~is_good).tolist():
        box, i = images.box(row), int(images.image[row])
        if box.label is None:
            text = f"category {box.category} is not among the {num_classes} classes"
            found.append((i, row, Problem("unknown category", box.where, text)))
        if isinstance(problem := clip_box(box, sizes[i]), Problem):
            found.append((i, row, problem))
    return clipped, is_good, found


def check_files(images: ListedImages) -> list[tuple[Size | None, Problem | None]]:
    """Check all image files; return the size of each, and its problem or None."""

    def check(i: int) -> tuple[Size | None, Problem | None]:
        image = images.files[i]
        try:
            size = check_image(image.path)
            if image.size in (None, size):
                return size, None
            return size, size_problem(images[i], size, read_size(image.path, upright=False))
        except ImageError as error:
            return image.size, image_problem(image.path, error)

    start, numbers = time.perf_counter(), range(len(images))
    checks = [check(i) for i in numbers[:NUM_PROBED]]
    if time.perf_counter() - start < SLOW_FILE * NUM_PROBED:
        return checks + [check(i) for i in numbers[NUM_PROBED:]]
    with ThreadPoolExecutor() as pool:  # shortens the wait for slow files, but not for fast ones
        return checks + list(pool.map(check, numbers[NUM_PROBED:]))


def size_problem(image: ListedImage, size: Size, stored: Size) -> Problem:
    """Describe how an annotated size differs from the file's, upright and as stored."""
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
    """Whether no box ends more than a pixel beyond the image."""
    return all(box.xyxy[2] <= size[1] + 1 and box.xyxy[3] <= size[0] + 1 for box in boxes)
