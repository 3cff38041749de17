"""Problems of a data set as plain data, from the readers to reports and fixes."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from sepc_zoo.errors import UserError

MAX_SHOWN = 50  # lines of an error message
MAX_ALIKE = 5  # lines of one text

Severity = Literal["error", "warning", "note"]
# Reports list the kinds in this order.
ErrorKind = Literal[
    "unreadable annotations",
    "broken entry",
    "duplicate id",
    "shared label file",
    "unread label file",
    "no label files",
    "no images",
    "missing image",
    "broken image",
    "size before EXIF rotation",
    "wrong size",
    "two classes of one name",
    "unknown category",
    "class unknown to train",
    "box missing",
    "box not finite",
    "box without area",
    "box outside the image",
]
WarningKind = Literal[
    "no boxes",
    "size swapped",
    "ids given anew",
    "annotation id twice",
    "corners swapped",
    "dark image",
    "image listed twice",
    "picture in two splits",
    "picture twice in a split",
    "class names alike",
    "box over the border",
    "box of a pixel or less",
    "box twice",
]
NoteKind = Literal["elongated box", "class without boxes", "image without boxes", "unused image"]
Kind = Literal[ErrorKind, WarningKind, NoteKind]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
SEVERITY_OF: dict[Kind, Severity] = {
    kind: severity
    for severity, kinds in zip(SEVERITIES, (ErrorKind, WarningKind, NoteKind), strict=True)
    for kind in get_args(kinds)
}
# Boxes with these can be left out instead of refusing the data set.
BAD_BOXES: frozenset[Kind] = frozenset(
    ("box missing", "box not finite", "box without area", "box outside the image", "box twice")
)
# Readers correct and report these; nothing is refused.
CORRECTED: frozenset[Kind] = frozenset(
    ("size swapped", "ids given anew", "annotation id twice", "corners swapped")
)


class Problem(NamedTuple):
    """One thing that is wrong with a data set; printed as ``where: text``."""

    kind: Kind
    where: str  # file, and line or entry; "" if the text names it
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


class DataError(UserError, ValueError):
    """A data set that cannot be used as it is.

    The message has a line for each problem, up to ``MAX_SHOWN`` and up to ``MAX_ALIKE`` of the same
    text, and ends with the hint, which says what the user can do.
    """

    def __init__(self, problems: Sequence[Problem], hint: str = "") -> None:
        super().__init__(problems, hint)
        self.problems = tuple(problems)
        self.hint = hint

    def __str__(self) -> str:
        by_text: dict[str, list[Problem]] = {}
        for problem in self.problems:
            by_text.setdefault(problem.text, []).append(problem)
        shown = [problem for alike in by_text.values() for problem in alike[:MAX_ALIKE]][:MAX_SHOWN]
        lines = [str(problem) for problem in shown]
        if len(self.problems) > len(shown):
            lines.append(f"... and {len(self.problems) - len(shown)} more problems")
        return "\n".join([*lines, self.hint] if self.hint else lines)


def unreadable(where: object, text: object, hint: str = "") -> DataError:
    """Build the error for annotations that cannot be read at all."""
    return DataError([Problem("unreadable annotations", str(where), str(text))], hint)
