"""A CSV file that grows row by row."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from sepc_zoo.files import write_csv


class CsvFile:
    """A table in a CSV file, which only the main process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; the first row of a file determines its columns."""
        if not PartialState().is_main_process:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8", errors="backslashreplace") as file:
            file.seek(0)
            columns = next(csv.reader(file), None)
            writer = csv.DictWriter(file, columns or [*row], "", "ignore", lineterminator="\n")
            if not columns:
                writer.writeheader()
            writer.writerow(row)

    def keep(self, is_kept: Callable[[Mapping[str, str]], bool]) -> None:
        """Drop the other rows, and the broken end that a full disk or a power cut leaves."""
        if not PartialState().is_main_process:
            return
        kept = [row for row in self.read() if is_kept(row)]
        if kept:
            write_csv(self.path, [*kept[0]], [[*row.values()] for row in kept])
        else:
            self.path.unlink(missing_ok=True)

    def read(self) -> list[dict[str, str]]:
        """Read all whole rows.

        A full disk may have cut off the last one, a power cut leaves zero bytes.
        """
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            text = file.read().partition("\0")[0]
        whole = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        return [row for row in whole if None not in (*row, *row.values())]
