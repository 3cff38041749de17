"""A CSV file that grows row by row."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from sepc_zoo.files import write_atomically


class CsvFile:
    """A table in a CSV file, which only the main process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; the first row of a file determines its columns."""
        if not PartialState().is_main_process:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            columns = next(csv.reader(file), None)
            header = [] if columns else [list(row)]
            file.write(_to_csv([*header, [row.get(column, "") for column in columns or row]]))

    def keep(self, is_kept: Callable[[Mapping[str, str]], bool]) -> None:
        """Drop all other rows, and a last one that was cut off."""
        if not PartialState().is_main_process or not self.path.exists():
            return
        kept = [row for row in self.read() if is_kept(row)]
        if not kept:
            self.path.unlink()
            return
        text = _to_csv([list(kept[0]), *(list(row.values()) for row in kept)])
        write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"))

    def read(self) -> list[dict[str, str]]:
        """Read all whole rows; a full disk may have cut off the last one."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
        header, *rows = list(csv.reader(whole)) or [[]]
        return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


def _to_csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
