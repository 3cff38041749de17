"""Label files of YOLO: where they are, and the boxes and polygons of their lines."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sepc_zoo.data.annotations import Size
from sepc_zoo.data.formats.layout import Finder, fold
from sepc_zoo.data.formats.parsing import read_lines
from sepc_zoo.data.listing import ListedBox
from sepc_zoo.data.problems import DataError, Problem

CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
IMAGE_FOLDERS = ("images", "jpegimages")  # replaced by "labels" in the paths of label files
MIN_POLYGON = 6  # numbers of a triangle
MAX_BEYOND = 1.0  # sides of the image; values further outside are not fractions of it
COLUMNS = "'class x y width height' (or 'class x1 y1 x2 y2 x3 y3 ...' of a polygon)"


def label_places(folder: Path, finder: Finder) -> list[Path]:
    """List the folders that may have the labels of a folder's images.

    They are its path with ``labels`` in place of one ``images``, the last first, and the folder.
    """
    parts = folder.parts
    places = []
    for i in reversed(range(len(parts))):
        if fold(parts[i]) in IMAGE_FOLDERS:
            above = Path(*parts[:i])
            others = sorted(finder.names(above).get("labels", ()))  # "Labels" is another folder
            places += [finder.follow(above, [name, *parts[i + 1 :]]) for name in others]
    return [*filter(None, places), folder]


def read_label_file(file: Path | None) -> tuple[list[str], list[Problem]]:
    try:
        return read_lines(file) if file else [], []
    except DataError as error:
        return [], [problem._replace(kind="broken entry") for problem in error.problems]


def may_be_labels(name: str) -> bool:
    return name.lower().endswith(".txt") and name.lower() not in CLASS_FILES


def is_label_file(file: Path) -> bool:
    lines, _ = read_label_file(file)
    try:
        return any(_parse_line(line, False) for line in lines if line)
    except ValueError:
        return False


def list_boxes(
    lines: Sequence[str],
    where: str,
    size: Size,
    classes: Mapping[int, tuple[int, str]],
    has_keypoints: bool,
    problems: list[Problem],
) -> list[ListedBox]:
    """List the boxes of a label file, each once.

    Args:
        where: The file, for messages.
        classes: Label and name of each class number.
    """
    boxes: list[ListedBox] = []
    first: dict[tuple[float, ...], int] = {}
    for i, text in enumerate(lines, start=1):
        if not text:
            continue
        place = f"{where}:{i}"
        try:
            number, *values = _parse_line(text, has_keypoints)
        except ValueError as error:
            problems.append(Problem("broken entry", place, str(error)))
            continue
        if any(abs(value - 0.5) > 0.5 + MAX_BEYOND for value in values):
            reason = f"{text!r} goes beyond 0 ... 1, the sides of the image"
            problems.append(Problem("box outside the image", place, reason))
        elif (line := first.setdefault((number, *values), i)) != i:
            problems.append(Problem("box twice", place, f"the same as line {line}"))
        else:
            label, category = classes.get(int(number), (None, str(int(number))))
            x1, y1, x2, y2 = _corners(values, size)
            area = (x2 - x1) * (y2 - y1)
            boxes.append(ListedBox(place, (x1, y1, x2, y2), label, category, 0, area))
    return boxes


def _parse_line(text: str, has_keypoints: bool) -> list[float]:
    """Parse a class and x, y, width, height or a polygon; a ValueError says what is wrong."""
    try:
        numbers = [*map(float, text.split())]
    except ValueError:
        raise ValueError(f"{text!r} is not numbers: {COLUMNS}") from None
    if has_keypoints:
        numbers = numbers[:5]
    if len(numbers) == 6:
        reason = "has a sixth column, as predictions with their confidence have"
        raise ValueError(f"{text!r} {reason}; expected {COLUMNS}")
    if len(numbers) != 5 and (len(numbers) <= MIN_POLYGON or not len(numbers) % 2):
        raise ValueError(f"{len(numbers)} columns in {text!r}; expected {COLUMNS}")
    if not numbers[0].is_integer():
        raise ValueError(f"class {numbers[0]:g} is no whole number")
    return numbers


def _corners(values: Sequence[float], size: Size) -> tuple[float, float, float, float]:
    """Find the box in pixels, around the corners of a polygon."""
    height, width = size
    if len(values) == 4:
        x, y, w, h = values
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        xs, ys = values[0::2], values[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    return x1 * width, y1 * height, x2 * width, y2 * height


def keypoint_problems(where: Path, lines: Iterable[str]) -> list[Problem]:
    """Report lines that could be polygons, but look like boxes with keypoints."""
    rows = [row for text in lines if len(row := _numbers(text)) >= MIN_POLYGON]
    if len({len(row) for row in rows}) != 1:
        return []
    for size in (2, 3):  # x and y, or these and visibility
        count, rest = divmod(len(rows[0]) - 4, size)
        if not rest and _have_keypoints(np.array(rows), size):
            text = (
                f"{len(rows[0]) + 1} columns look like boxes with keypoints: declare them in a "
                f"data.yaml (kpt_shape: [{count}, {size}]), or remove all columns after the fifth"
            )
            return [Problem("broken entry", str(where), text)]
    return []


def _numbers(text: str) -> list[float]:
    """Parse the values of a line behind its class; empty if they are not numbers."""
    try:
        return [float(value) for value in text.split()[1:]]
    except ValueError:
        return []


def _have_keypoints(rows: NDArray[np.float64], size: int) -> bool:
    """Whether rows are boxes around points of ``size`` numbers each; a point at 0, 0 is unknown.

    Width and height, taken for the second corner of a polygon, mostly lie far from the others.
    """
    center, sides = rows[:, None, :2], rows[:, None, 2:4]
    points = rows[:, 4:].reshape(len(rows), -1, size)
    xy = points[..., :2]
    if not ((abs(xy - center) <= sides / 2) | (xy == 0).all(axis=2, keepdims=True)).all():
        return False
    if size == 3:
        return bool(np.isin(points[..., 2], (0, 1, 2)).all())
    others = np.concatenate([center, xy], axis=1)
    low, high = others.min(axis=1), others.max(axis=1)
    is_far = (rows[:, 2:4] < 2 * low - high) | (rows[:, 2:4] > 2 * high - low)
    return bool(is_far.any(axis=1).mean() >= 0.5)
