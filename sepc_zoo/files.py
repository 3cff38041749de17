"""Writing files so that a reader, or a run that was interrupted, never meets half of one."""

import json
import os
import re
from collections.abc import Callable
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
