"""SIGINT, SIGTERM and SIGHUP: finish the current step, save, and say how to go on."""

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, HANGUP)))
ECHO_SECONDS = 1.0


class Interrupted(Exception):  # noqa: N818 - no error: the run is saved
    """A signal stopped the command; ``status`` is the exit status that shells expect."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class WaitEnded(Exception):  # noqa: N818 - no error
    """A signal arrived during a wait that may never end."""


class Interrupt:
    """Context that remembers a signal instead of ending; a second signal has its usual effect.

    SIGHUP stays ignored where it is, as under ``nohup``. After SIGHUP the terminal and the
    pipes to its other programs are gone: what is printed then goes nowhere.

    A second signal within ``ECHO_SECONDS`` is taken for the first one: torchrun and ``timeout``
    pass signals on to processes that may have got them with their process group.

    Outside of the main thread, where Python allows no handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waiting_process = 0
        self._since = 0.0  # seconds on the monotonic clock
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextmanager
    def ends_wait(self) -> Iterator[None]:
        """Let a signal end the code in here by ``WaitEnded``."""
        self._waiting_process = os.getpid()  # a worker that is forked in here is another one
        try:
            if self.signal is not None:
                raise WaitEnded
            yield
        finally:
            self._waiting_process = 0

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
            if number == HANGUP:
                leave_terminal()
            if self._waiting_process == os.getpid():
                raise WaitEnded
        elif time.monotonic() - self._since > ECHO_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python
        self._previous = {}


def leave_terminal() -> None:
    """Print to nowhere from now on, unless it is to a file."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):  # closed before
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
