"""Label files of YOLO: where they are, and the boxes and polygons of their lines."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sepc_zoo.data.annotations import Size
from sepc_zoo.data.formats.layout import Finder, fold
from sepc_zoo.data.formats.parsing import read_lines
from sepc_zoo.data.listing import ListedBox
from sepc_zoo.data.problems import DataError, Problem

CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
IMAGE_FOLDERS = ("images", "jpegimages")  # in whose place a path of labels has "labels"
MIN_POLYGON = 6  # numbers of a triangle
MAX_BEYOND = 1.0  # of a side of the image; values further outside are no fractions of it
COLUMNS = "'class x y width height' (or 'class x1 y1 x2 y2 x3 y3 ...' of a polygon)"


class Line(NamedTuple):
    """A line of a label file."""

    number: int  # the class
    values: tuple[float, ...]  # x, y, width, height, or the corners of a polygon, in 0...1


def label_places(folder: Path, finder: Finder) -> list[Path]:
    """List the folders where labels of the images of a folder may be.

    They are those with ``labels`` for an ``images`` of the path, the last first, and the same one.
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


def keypoint_problems(where: Path, lines: Iterable[str]) -> list[Problem]:
    """Say that what could be polygons looks like boxes with keypoints.

    All lines are then of one length, their first numbers are boxes around the following points, and
    as the second corner of a polygon, width and height would mostly lie far from the others.
    """
    rows = [row for text in lines if len(row := _numbers(text)) >= MIN_POLYGON]
    if len({len(row) for row in rows}) != 1:
        return []
    for size in (2, 3):  # x and y, or these and visibility
        count, rest = divmod(len(rows[0]) - 4, size)
        if rest or not all(_is_box_of_points(row, size) for row in rows):
            continue
        if size == 2 and sum(map(_far_second_corner, rows)) * 2 < len(rows):
            continue
        text = (
            f"{len(rows[0]) + 1} columns look like boxes with keypoints: declare them in a "
            f"data.yaml (kpt_shape: [{count}, {size}]), or remove all columns after the fifth"
        )
        return [Problem("broken entry", str(where), text)]
    return []


def _numbers(text: str) -> list[float]:
    """Parse the values of a line behind its class; none where they are no numbers."""
    try:
        return [float(value) for value in text.split()[1:]]
    except ValueError:
        return []


def _is_box_of_points(row: Sequence[float], size: int) -> bool:
    """Whether all points after the first four numbers are in the box of these, or unknown: 0, 0."""
    x, y, width, height = row[:4]
    points = zip(row[4::size], row[5::size], strict=True)
    if size == 3 and not {*row[6::3]} <= {0, 1, 2}:
        return False
    return all(
        (abs(px - x) <= width / 2 and abs(py - y) <= height / 2) or px == py == 0
        for px, py in points
    )


def _far_second_corner(row: Sequence[float]) -> bool:
    """Whether the second corner is further from the others than these from each other."""
    for axis in (0, 1):
        others = [row[axis], *row[4 + axis :: 2]]
        size = max(others) - min(others)
        if not min(others) - size <= row[2 + axis] <= max(others) + size:
            return True
    return False


def parse_lines(
    lines: Sequence[str], where: str, has_keypoints: bool, problems: list[Problem]
) -> dict[Line, str]:
    """Parse the lines of a label file; return each well-formed one once, with its place."""
    places: dict[Line, str] = {}
    for i, text in enumerate(lines, start=1):
        if not text:
            continue
        place = f"{where}:{i}"
        try:
            line = _parse_line(text, has_keypoints)
        except ValueError as error:
            problems.append(Problem("broken entry", place, str(error)))
            continue
        if any(abs(value - 0.5) > 0.5 + MAX_BEYOND for value in line.values):
            text = f"{text!r} goes beyond 0 ... 1, the sides of the image"
            problems.append(Problem("box outside the image", place, text))
        elif line in places:
            text = f"the same as line {places[line].rpartition(':')[2]}"
            problems.append(Problem("box twice", place, text))
        else:
            places[line] = place
    return places


def _parse_line(text: str, has_keypoints: bool) -> Line:
    """Parse a line of a label file; a ValueError says what is wrong with it."""
    try:
        number, *values = map(float, text.split())
    except ValueError:
        raise ValueError(f"{text!r} is not numbers: {COLUMNS}") from None
    if has_keypoints:
        values = values[:4]
    if len(values) == 5:
        reason = "has a sixth column, as predictions with their confidence have"
        raise ValueError(f"{text!r} {reason}; expected {COLUMNS}")
    if len(values) != 4 and (len(values) < MIN_POLYGON or len(values) % 2):
        raise ValueError(f"{len(values) + 1} columns in {text!r}; expected {COLUMNS}")
    if not number.is_integer():
        raise ValueError(f"class {number:g} is no whole number")
    return Line(int(number), tuple(values))


def make_box(
    where: str, line: Line, size: Size, classes: Mapping[int, tuple[int, str]]
) -> ListedBox:
    height, width = size
    if len(line.values) == 4:
        x, y, w, h = line.values
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        xs, ys = line.values[0::2], line.values[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    label, category = classes.get(line.number, (None, str(line.number)))
    return ListedBox(where, (x1, y1, x2, y2), label, category, 0, (x2 - x1) * (y2 - y1))
