"""What the readers share: finding a split by its name, reading text files of any origin."""

from collections.abc import Sequence
from pathlib import Path

from sepc_zoo.data.annotations import DataError

ONLY_SPLIT = "train"  # what a folder without splits is taken for


def choose_split(split: str, names: Sequence[str], before: str, after: str = "") -> str:
    """The one name that is ``split`` or, failing that, begins with it.

    So "train" finds ``train2017`` and "val" finds ``valid``.

    Args:
        split: What was asked for.
        names: What there is.
        before: With ``after`` makes the pattern in the message.

    Raises:
        DataError: no such name, or more than one that could be meant.
    """
    if split in names:
        return split
    matches = sorted(name for name in names if name.startswith(split))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise DataError([f"{before}{split}*{after} could be any of: {', '.join(matches)}"])
    present = ", ".join(sorted(names)) or "none"
    raise DataError([f"{before}{split}*{after} does not exist; there are: {present}"])


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without the byte order mark that Windows programs put before it.

    Raises:
        DataError: the file cannot be read, or is of another encoding; names file and line.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError([f"{path}:{line}: not UTF-8 text; save the file as UTF-8"]) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without the space around them; errors as in ``read_text``."""
    return [line.strip() for line in read_text(path).splitlines()]


def read_class_names(path: Path) -> list[str]:
    """The classes of a file that names one a line.

    Raises:
        DataError: it has none, or an empty line between them, which would shift all that follow.
    """
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DataError([f"{path}:{lines.index('') + 1}: a class without a name"])
    if not lines:
        raise DataError([f"{path}: has no classes"])
    return lines
