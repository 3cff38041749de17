"""The progress bar of all commands."""

import sys
import time
from typing import Any

from tqdm import tqdm

INTERVAL = 30.0  # seconds between the lines of a log


class ProgressLines(tqdm):
    """Progress for log files and pipes: a line every ``INTERVAL`` seconds and one at the end.

    With ``leave=False`` there is no last line.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.due = time.monotonic() + INTERVAL
        super().__init__(*args, **kwargs, ncols=0)  # the figures without a bar

    @staticmethod
    def status_printer(file: Any) -> Any:  # noqa: ARG004
        """Print no status; without one, ``close`` writes nothing either."""
        return None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + INTERVAL
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Leave the lines where they are."""

    def close(self) -> None:
        if not self.disable and self.leave and self.n > self.initial:
            self.due = 0.0
            self.display()
        super().close()


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """Return tqdm's bar, or ``ProgressLines`` where the output is neither terminal nor notebook."""
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    is_shown = sys.stderr.isatty() or is_notebook
    return (tqdm if is_shown else ProgressLines)(*args, **kwargs)
