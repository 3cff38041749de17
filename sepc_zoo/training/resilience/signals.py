"""SIGINT and SIGTERM: finish the current step, save, and say how to go on."""

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0


class Interrupted(Exception):  # noqa: N818 - no error: the run is saved
    """A signal stopped the command; ``status`` is the exit status that shells expect."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Interrupt:
    """Context that remembers a signal instead of ending; a second signal has its usual effect.

    A second signal within ``ECHO_SECONDS`` is taken for the first one: torchrun and ``timeout``
    pass signals on to processes that may have got them with their process group.

    Outside of the main thread, where Python allows no handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0  # seconds on the monotonic clock
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > ECHO_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not of Python
        self._previous = {}
