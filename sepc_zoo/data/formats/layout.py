"""Helpers of all readers: where files are, and which split they belong to."""

import os
import re
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sepc_zoo.data.images import IMAGE_SUFFIXES
from sepc_zoo.data.listing import find_duplicates
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
MAX_DEPTH = 6  # levels of folders below a data set that are searched
MAX_FOLDERS = 50_000  # folders that are searched, in case the data set is a whole disk
LAST_ALONE = ("images", "labels")  # folder names that are ambiguous without the folder above

# ------------------------------------------------------------------------------------- files


def fold(name: str) -> str:
    """Unify case and Unicode form of a name, which other file systems may change."""
    return unicodedata.normalize("NFC", name).casefold()


class Finder:
    """Finds files by the paths in annotations: of another machine, case or Unicode form, too.

    The paths may be relative to ``bases``, the likeliest first. Each folder is listed once; files
    are not opened.
    """

    def __init__(self, bases: Iterable[Path]) -> None:
        self.bases = list(dict.fromkeys(bases))
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, text: str) -> Path | None:
        """Find the file or folder of a path by the longest end of it that exists below a base."""
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
        """Follow a path below a folder; None if it leads to no file, or to several of like name."""
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
        """List the files of a folder by folded name; empty where there is no such folder."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            with suppress(OSError):
                for name in os.listdir(folder):
                    names.setdefault(fold(name), []).append(name)
            self._names[folder] = names
        return self._names[folder]


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Walk a folder and those below it; yield each with the sorted names of its visible files.

    Links are followed, and each folder is visited once, at most ``MAX_FOLDERS`` of them.
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
    """Say that an annotation has no image, and name one of its stem that cannot be read."""
    others = [file for file in alike if file.suffix.lower() in UNREAD]
    text = "no image of this name"
    return f"{text}: {others[0]} is of a kind that is not read; convert it" if others else text


def index_stems(roots: Iterable[Path]) -> dict[str, list[Path]]:
    """List the files of folders and those below them by their folded stems."""
    files: dict[str, list[Path]] = {}
    for folder, names in dict(found for root in roots for found in walk(root)).items():
        for name in names:
            files.setdefault(fold(os.path.splitext(name)[0]), []).append(folder / name)
    return files


def common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """Count the folders that two paths share at their end."""
    same = [fold(x) == fold(y) for x, y in zip(reversed(a), reversed(b), strict=False)]
    return [*same, False].index(False)


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


# ------------------------------------------------------------------------------------ splits


def split_word(text: str) -> str | None:
    """Find the split in the name of a file or folder: "train", "val", "test" ..."""
    match = SPLIT_WORD.search(text)
    if match is None:
        return None
    word = match[1].lower()
    return SAME_SPLIT.get(word, word)


def split_of(parts: Iterable[str]) -> str | None:
    """Find the split in the names of nested folders; the innermost name with one counts."""
    words = (split_word(part) for part in reversed([*parts]))
    return next((word for word in words if word), None)


def matching_splits(split: str, names: Sequence[str]) -> list[str]:
    """Find the names that match ``split``: the same one, or else those that begin with it.

    "train" finds ``Train`` or ``train2017``, and "val" finds ``valid`` or ``dev``.
    """
    if split in names:
        return [split]
    word = split_word(split) or split
    same = [name for name in names if fold(name) == fold(split)]
    longer = sorted(name for name in names if fold(name).startswith(fold(split)))
    return same or longer or [name for name in names if split_word(name) == word]


def choose_split(split: str, names: Sequence[str], where: object) -> str:
    """Choose the one of ``names`` that matches ``split``.

    Raises:
        DataError: none or several match; the message names ``where``, a file or folder.
    """
    matches = matching_splits(split, names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise unreadable(where, f"the split {split}* could be any of: {', '.join(matches)}")
    present = ", ".join(sorted(names)) or "none"
    raise unreadable(where, f"the split {split}* does not exist; there are: {present}")


def report_duplicates(
    keys: Iterable[Hashable], kind: Kind, where: object, text: str = "{} is there twice"
) -> list[Problem]:
    return [Problem(kind, str(where), text.format(key)) for key in find_duplicates(keys)]
