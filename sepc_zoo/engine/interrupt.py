"""SIGINT and SIGTERM during a run: finish the step, save, say how to go on."""

import signal
from types import FrameType
from typing import Any


class Interrupted(Exception):  # noqa: N818 - no error: the run is saved
    """A run that was stopped by a signal; ``status`` is the exit status that shells expect."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Interrupt:
    """Remembers a signal while it is the context; a second one has its usual effect."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
