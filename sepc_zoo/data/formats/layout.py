"""Shared by the readers: choosing a split, reading text files, parsing COCO's boxes."""

import math
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sepc_zoo.data.annotations import ListedBox, find_duplicates
from sepc_zoo.data.problems import Kind, Problem, unreadable

Source = str | os.PathLike[str]

ONLY_SPLIT = "train"  # the name of the one split of a folder without splits


def choose_split(split: str, names: Sequence[str], where: object, pattern: str = "{}") -> str:
    """Find the name that is ``split`` or, failing that, the only one that begins with it.

    So "train" finds ``train2017`` and "val" finds ``valid``.

    Args:
        split: The name asked for.
        names: The names present.
        where: File or folder, for messages.
        pattern: What a name is part of, for messages.

    Raises:
        DataError: no such name, or several that begin with it.
    """
    if split in names:
        return split
    matches = sorted(name for name in names if name.startswith(split))
    if len(matches) == 1:
        return matches[0]
    asked = pattern.format(f"{split}*")
    if matches:
        raise unreadable(where, f"{asked} could be any of: {', '.join(matches)}")
    present = ", ".join(sorted(names)) or "none"
    raise unreadable(where, f"{asked} does not exist; there are: {present}")


def report_duplicates(
    keys: Iterable[Hashable], kind: Kind, where: object, text: str = "{} is there twice"
) -> list[Problem]:
    """Make a problem of each key that comes more than once."""
    return [Problem(kind, str(where), text.format(key)) for key in find_duplicates(keys)]


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without the byte order mark of Windows programs.

    Raises:
        DataError: the file cannot be read, or is of another encoding; names file and line.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise unreadable(path, error.strerror) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise unreadable(f"{path}:{line}", "not UTF-8 text; save the file as UTF-8") from error


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file, stripped of spaces; errors as in ``read_text``."""
    return [line.strip() for line in read_text(path).splitlines()]


def read_class_names(path: Path) -> list[str]:
    """Read a file with one class name per line.

    Raises:
        DataError: no names, or an empty line between them, which would shift all that follow.
    """
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise unreadable(f"{path}:{lines.index('') + 1}", "a class without a name")
    if not lines:
        raise unreadable(path, "has no classes")
    return lines


def parse_box(
    where: str, annotation: Mapping[str, Any], label: int | None, category: str
) -> ListedBox | Problem:
    """Parse an annotation with COCO's keys.

    It has ``bbox`` (x, y, width, height in pixels), and perhaps ``area``, by default width times
    height, and ``iscrowd``.
    """
    bbox, area = annotation.get("bbox"), annotation.get("area")
    if not isinstance(bbox, list):
        return Problem("broken entry", where, "has no 'bbox'")
    if len(bbox) != 4 or not all(map(_is_number, bbox)):
        return Problem("broken entry", where, f"'bbox' {bbox} is not four numbers")
    if area is not None and not (_is_number(area) and math.isfinite(area)):
        return Problem("broken entry", where, f"'area' {area!r} is not a finite number")
    x, y, width, height = bbox
    return ListedBox(
        where,
        (x, y, x + width, y + height),
        label,
        category,
        iscrowd=int(bool(annotation.get("iscrowd", 0))),
        area=width * height if area is None else area,
        bbox=(x, y, width, height),
    )


def _is_number(value: Any) -> bool:
    """Accept floats, and whole numbers that a float can hold: JSON's have any length."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
