"""Helpers of all readers: text files, ids and boxes in the forms that tools write."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sepc_zoo.data.listing import ListedBox
from sepc_zoo.data.problems import Kind, Problem, unreadable

FALSE = ("", "0", "0.0", "false", "no", "none")  # values of ``iscrowd``; all others are true


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a UTF-8 file, without the byte order mark of Windows programs.

    Raises:
        DataError: the file cannot be read, or has another encoding; names file and line.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", errors)
    except OSError as error:
        raise unreadable(path, error.strerror) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise unreadable(f"{path}:{line}", "not UTF-8 text; save the file as UTF-8") from error


def read_lines(path: Path, errors: str = "strict") -> list[str]:
    """Read the lines of a UTF-8 file, stripped of spaces; errors as in ``read_text``."""
    return [line.strip() for line in read_text(path, errors).splitlines()]


def read_paths(path: Path) -> list[str]:
    """Read a list of files; names that are not UTF-8 are decoded as ``os.fsdecode`` does."""
    return read_lines(path, "surrogateescape")


def read_class_names(path: Path) -> list[str]:
    """Read a file with one class name per line.

    Raises:
        DataError: there are no names, or there is an empty line between them, which would shift the
            numbers of all that follow.
    """
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise unreadable(f"{path}:{lines.index('') + 1}", "a class without a name")
    if not lines:
        raise unreadable(path, "has no classes")
    return lines


def parse_id(value: Any) -> int | str:
    """Convert 1, 1.0 and "1" to the same number, other ids to texts."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    text = str(value)
    return int(text) if re.fullmatch("0|-?[1-9][0-9]{0,17}", text) else text


def number_ids(ids: Iterable[int | str]) -> dict[int | str, int]:
    """Map ids to themselves if all are numbers of 63 bits, else to numbers from 1 on."""
    unique = list(dict.fromkeys(ids))
    if all(isinstance(i, int) and abs(i) < 2**63 for i in unique):
        return {i: int(i) for i in unique}
    return {i: number for number, i in enumerate(unique, start=1)}


def parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Read the size of an image; None where it is missing, zero or no number."""
    sides = parse_id(height), parse_id(width)
    valid = [side for side in sides if isinstance(side, int) and 0 < side < 2**31]
    return (valid[0], valid[1]) if len(valid) == len(sides) else None


def parse_box(
    where: str,
    annotation: Mapping[str, Any],
    problems: list[Problem],
    label: int | None = None,
    category: str = "",
) -> ListedBox | None:
    """Parse an annotation with COCO's keys; a broken one gives None and a problem.

    It has ``bbox`` (x, y, width, height in pixels) or ``segmentation`` (polygons), and perhaps
    ``area``, by default width times height, and ``iscrowd``.
    """
    bbox, area = annotation.get("bbox") or _polygon_box(annotation), annotation.get("area")
    kind: Kind = "broken entry"
    if not bbox and "bbox" in annotation:
        kind, text = "box missing", f"'bbox' is {annotation['bbox']!r}"
    elif not isinstance(bbox, list):
        text = "has no 'bbox'"
    elif len(bbox) != 4 or not all(map(_is_number, bbox)):
        text = f"'bbox' {bbox} is not four numbers"
    elif area is not None and not (_is_number(area) and math.isfinite(area)):
        text = f"'area' {area!r} is not a finite number"
    else:
        x, y, width, height = map(float, bbox)
        area = width * height if area is None else float(area)
        iscrowd = int(str(annotation.get("iscrowd")).strip().lower() not in FALSE)
        corners = x, y, x + width, y + height
        return ListedBox(where, corners, label, category, iscrowd, area, (x, y, width, height))
    problems.append(Problem(kind, where, text))
    return None


def _polygon_box(annotation: Mapping[str, Any]) -> list[float] | None:
    """Find the box around the polygons of an annotation; None where it has none."""
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
        return None
    xs, ys = ([value for p in polygons for value in p[i::2]] for i in (0, 1))
    if len(xs) < 2 or len(xs) != len(ys) or not all(map(_is_number, xs + ys)):
        return None
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _is_number(value: Any) -> bool:
    """Whether a value is a float, or a whole number that a float can hold."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
