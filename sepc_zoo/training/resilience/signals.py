"""SIGINT and SIGTERM during a run: finish the step, save, say how to go on."""

import signal
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds


class Interrupted(Exception):  # noqa: N818 - no error: the run is saved
    """A run that was stopped by a signal; ``status`` is the exit status that shells expect."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Interrupt:
    """Remembers a signal while it is the context; a second one has its usual effect.

    What comes within ``ECHO`` seconds is still the first one: torchrun and ``timeout`` pass it on
    to processes that may have got it with their whole group.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0  # seconds on the monotonic clock
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
