"""Shared by the readers: where files are, which split they belong to, ids, boxes, text files."""

import math
import os
import re
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sepc_zoo.data.annotations import ListedBox, find_duplicates
from sepc_zoo.data.images import IMAGE_SUFFIXES
from sepc_zoo.data.problems import Kind, Problem, unreadable

Source = str | os.PathLike[str]

ONLY_SPLIT = "train"  # the name of the one split of a folder without splits
SPLIT_WORD = re.compile(
    r"(?<![a-z])(train(?:val|ing)?|(?:mini)?val|valid|validation|dev|eval|test(?:ing)?)(?![a-z])",
    re.IGNORECASE,
)
SAME_SPLIT = {"training": "train", "testing": "test"}
SAME_SPLIT |= dict.fromkeys(("valid", "validation", "dev", "eval"), "val")
UNREAD = (".heic", ".heif", ".avif", ".dng", ".cr2", ".nef", ".raw", ".psd", ".jp2", ".svg", ".pdf")
MAX_DEPTH = 6  # folders below a data set that are searched
MAX_FOLDERS = 50_000  # likewise, should it be a whole disk
LAST_ALONE = ("images", "labels")  # names that say nothing without the folder above

# ------------------------------------------------------------------------------------- files


def fold(name: str) -> str:
    """Unify case and Unicode form of a name, which other systems do not keep."""
    return unicodedata.normalize("NFC", name).casefold()


class Finder:
    """Finds files by paths as data sets write them: of another machine, case or Unicode form.

    Each folder is listed once, and no other file is touched.

    Args:
        bases: Folders to which paths may be relative, the likeliest first.
    """

    def __init__(self, bases: Iterable[Path]) -> None:
        self.bases = list(dict.fromkeys(bases))
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, text: str) -> Path | None:
        """Find the file or folder of a path by its longest end that is below a base."""
        if os.path.isabs(text) and os.path.exists(text):
            return Path(text)
        for base in self.bases:  # archives of Windows may become files with backslashes
            if "\\" in text and text in self.names(base).get(fold(text), ()):
                return base / text
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            return self.bases[0]
        for i in range(len(parts)):
            end = parts[i:]
            if i and len(end) == 1 and fold(end[0]) in LAST_ALONE:
                break
            for base in self.bases:
                if (found := self.follow(base, end)) is not None:
                    return found
        return None

    def follow(self, base: Path, parts: Sequence[str]) -> Path | None:
        """Follow a path below a folder; None where it leads nowhere, or to several files alike."""
        if not parts:
            return base
        name, *rest = parts
        if name == "..":
            return self.follow(base.parent, rest)
        alike = self.names(base).get(fold(name), [])
        if name in alike and (found := self.follow(base / name, rest)):
            return found
        others = [self.follow(base / other, rest) for other in alike if other != name]
        paths = [path for path in others if path is not None]
        return paths[0] if len(paths) == 1 else None

    def listing(self, folder: Path) -> list[str]:
        """List the names of the files of a folder, sorted."""
        return sorted(name for names in self.names(folder).values() for name in names)

    def names(self, folder: Path) -> Mapping[str, list[str]]:
        """List the files of a folder by folded name; none for what is no folder."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            with suppress(OSError):
                for name in os.listdir(folder):
                    names.setdefault(fold(name), []).append(name)
            self._names[folder] = names
        return self._names[folder]


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Walk a folder and those below it, with the sorted names of their files, hidden ones left out.

    Links are followed, each folder once; after ``MAX_FOLDERS`` it ends.
    """
    seen: set[str] = set()
    for parent, children, names in os.walk(root, followlinks=True):
        folder, real = Path(parent), os.path.realpath(parent)
        is_deep = len(folder.parts) - len(Path(root).parts) >= MAX_DEPTH
        children[:] = [] if is_deep or real in seen else sorted(filter(is_visible, children))
        if len(seen) == MAX_FOLDERS:
            return
        if real not in seen:
            yield folder, sorted(filter(is_visible, names))
        seen.add(real)


def no_image_text(alike: Iterable[Path]) -> str:
    """Say that an annotation has no image, and which of the files ``alike`` is not read."""
    others = [file for file in alike if file.suffix.lower() in UNREAD]
    text = "no image of this name"
    return f"{text}: {others[0]} is of a kind that is not read; convert it" if others else text


def index_stems(root: Path) -> dict[str, list[Path]]:
    """List the files of a folder and those below it by their folded stems."""
    files: dict[str, list[Path]] = {}
    for folder, names in walk(root):
        for name in names:
            files.setdefault(fold(os.path.splitext(name)[0]), []).append(folder / name)
    return files


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


# ------------------------------------------------------------------------------------ splits


def split_word(text: str) -> str | None:
    """Find the split that a name of a file or folder speaks of: "train", "val", "test" ..."""
    match = SPLIT_WORD.search(text)
    if match is None:
        return None
    word = match[1].lower()
    return SAME_SPLIT.get(word, word)


def split_of(parts: Iterable[str]) -> str | None:
    """Find the split that the innermost of some folders speaks of."""
    words = (split_word(part) for part in reversed([*parts]))
    return next((word for word in words if word), None)


def matching_splits(split: str, names: Sequence[str]) -> list[str]:
    """Find the names that may be meant by ``split``: the same, or else those that begin with it.

    So "train" finds ``Train`` or ``train2017``, and "val" finds ``valid`` or ``dev``.
    """
    if split in names:
        return [split]
    word = split_word(split) or split
    same = [name for name in names if fold(name) == fold(split)]
    longer = sorted(name for name in names if fold(name).startswith(fold(split)))
    return same or longer or [name for name in names if split_word(name) == word]


def choose_split(split: str, names: Sequence[str], where: object, pattern: str = "{}") -> str:
    """Choose the one name that may be meant by ``split``.

    Args:
        split: The name asked for.
        names: The names present.
        where: File or folder, for messages.
        pattern: What a name is part of, for messages.

    Raises:
        DataError: no such name, or several.
    """
    matches = matching_splits(split, names)
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


# ------------------------------------------------------------------------------- text files


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


def read_paths(path: Path) -> list[str]:
    """Read a list of files; names that are not UTF-8 come as Python has them."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise unreadable(path, error.strerror) from error
    return [line.strip() for line in text.splitlines()]


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


# ------------------------------------------------------------------------------ ids and boxes


def parse_id(value: Any) -> int | str:
    """Make ids equal that are written as 1, 1.0 and "1"; others are texts."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    text = str(value)
    return int(text) if re.fullmatch("0|-?[1-9][0-9]{0,17}", text) else text


def number_ids(ids: Iterable[int | str]) -> dict[int | str, int]:
    """Map ids to numbers of 63 bits: to themselves where all are such, else from 1 on."""
    unique = list(dict.fromkeys(ids))
    if all(isinstance(i, int) and abs(i) < 2**63 for i in unique):
        return {i: int(i) for i in unique}
    return {i: number for number, i in enumerate(unique, start=1)}


def parse_flag(value: Any) -> int:
    """Read a flag that tools write as a number, a text or a truth value: 0 or 1."""
    return int(str(value).strip().lower() not in ("", "0", "0.0", "false", "no", "none"))


def parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Read the size of an image; None where it is missing, zero or no number."""
    sides = parse_id(height), parse_id(width)
    valid = [side for side in sides if isinstance(side, int) and 0 < side < 2**31]
    return (valid[0], valid[1]) if len(valid) == len(sides) else None


def parse_box(
    where: str, annotation: Mapping[str, Any], label: int | None, category: str
) -> ListedBox | Problem:
    """Parse an annotation with COCO's keys.

    It has ``bbox`` (x, y, width, height in pixels) or ``segmentation`` (polygons), and perhaps
    ``area``, by default width times height, and ``iscrowd``.
    """
    bbox, area = annotation.get("bbox") or _polygon_box(annotation), annotation.get("area")
    if not bbox and "bbox" in annotation:
        return Problem("box missing", where, f"'bbox' is {annotation['bbox']!r}")
    if not isinstance(bbox, list):
        return Problem("broken entry", where, "has no 'bbox'")
    if len(bbox) != 4 or not all(map(_is_number, bbox)):
        return Problem("broken entry", where, f"'bbox' {bbox} is not four numbers")
    if area is not None and not (_is_number(area) and math.isfinite(area)):
        return Problem("broken entry", where, f"'area' {area!r} is not a finite number")
    x, y, width, height = map(float, bbox)
    return ListedBox(
        where,
        (x, y, x + width, y + height),
        label,
        category,
        iscrowd=parse_flag(annotation.get("iscrowd")),
        area=width * height if area is None else float(area),
        bbox=(x, y, width, height),
    )


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
    """Accept floats, and whole numbers that a float can hold: JSON's have any length."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
