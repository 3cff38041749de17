"""Printing for commands, safe for untrusted text: it must not control the terminal."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

# Control characters except tab and line break, bidirectional marks, odd bytes of file names.
CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
MAX_NAMES = 8  # names that a message lists


def printable(text: str) -> str:
    """Escape characters that control the terminal or that cannot be encoded."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as it is written in a command: in quotes where it has spaces or the like."""
    return shlex.quote(os.fspath(path))


def say(*texts: object, error: bool = False, **how: Any) -> None:
    """Print with control characters escaped, to stdout or, with ``error``, to stderr."""
    print(*(printable(str(t)) for t in texts), file=sys.stderr if error else sys.stdout, **how)


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 image``, ``2 boxes``."""
    plural = f"{noun}es" if noun.endswith("x") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def shorten(names: Sequence[str]) -> str:
    """The number of names and the first of them: ``12 (cat, dog, … and 4 more)``."""
    if not names:
        return "none"
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{len(names)} ({', '.join(names[:MAX_NAMES])}{more})"


def make_console(**how: Any) -> Any:
    """A rich console that escapes control characters in the text that it prints."""
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            for text, style, control in super().render(*args, **kwargs):
                yield Segment(text if control else printable(text), style, control)

    return SafeConsole(**how)
