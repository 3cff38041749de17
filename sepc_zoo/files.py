"""Atomic writes: no reader, and no run that was interrupted, ever finds half a file."""

import csv
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{8}\..+")


def write_atomically(
    path: str | Path, write: Callable[[Path], object], previous: Path | None = None
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    A missing folder is created. The temporary name has the suffix of the final one, because PIL and
    matplotlib choose the format by it. If ``write`` raises, an older file at ``path`` stays as it
    was. File and folder are synced, so that the new file survives a power failure.

    Args:
        previous: path to keep the older file at, for disks that lose synced data.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:8]}.{path.name}")
    try:
        write(temporary)
        sync(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes ``path`` at the end, and is removed on errors.

    Raises:
        FileExistsError: ``path`` is there already.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's is for the owner alone
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder, and needs no sync of it
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Remove temporary files of killed writers; call it only while nobody writes."""
    for file in folder.rglob(".*"):
        if TEMPORARY_NAME.fullmatch(file.name) and file.is_file():
            file.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, data: Any, indent: int | None = 2) -> None:
    """Write ``data`` as UTF-8 JSON; ``indent=None`` keeps long lists of results compact.

    Text that UTF-8 cannot encode, such as odd bytes of file names, is escaped and read as it was.

    Raises:
        ValueError: ``data`` contains NaN or infinity, which JSON lacks.
    """
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, encodable(text) + "\n")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows as a UTF-8 CSV file; file names that are no UTF-8 have their odd bytes escaped."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    content = encodable(text.getvalue()).encode()
    write_atomically(path, lambda file: file.write_bytes(content))


def encodable(text: str) -> str:
    """Escape surrogates (odd bytes of file names), which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()
