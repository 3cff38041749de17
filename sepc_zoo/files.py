"""Writing files so that a reader, or a run that was interrupted, never meets half of one."""

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


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    The folder is created where missing. The temporary name ends like the final one, because PIL and
    matplotlib choose the format by it. If ``write`` raises, what stood at ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:8]}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
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


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; nobody may be writing now."""
    for file in folder.rglob(".*"):
        if TEMPORARY_NAME.fullmatch(file.name) and file.is_file():
            file.unlink()


def write_json(path: str | Path, data: Any, indent: int | None = 2) -> None:
    """Write ``data`` as UTF-8 JSON; ``indent=None`` keeps long lists of results compact.

    Raises:
        ValueError: ``data`` holds a NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows as a UTF-8 CSV file; bytes of file names that are no UTF-8 are escaped."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    content = printable(text.getvalue()).encode()
    write_atomically(path, lambda file: file.write_bytes(content))


def printable(text: str) -> str:
    """Text as UTF-8 can hold it: a file name of another encoding has its odd bytes escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
