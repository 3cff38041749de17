"""Decoding a large COCO file in parts: its boxes become columns while it is read."""

import re
from array import array
from collections.abc import Iterable
from typing import IO, Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

START = re.compile(rb'"annotations"\s*:\s*\[')
WINDOW = 2**22  # bytes that are decoded at once
OVERLAP = 64  # bytes of the window before in which the key of the annotations may begin
MAX_TRIES = 20  # places where the entries of a window may end
NO_ID = -(2**63)
ENTRIES = msgspec.json.Decoder(list[msgspec.Raw])

Int64 = Annotated[int, msgspec.Meta(gt=NO_ID, le=2**63 - 1)]


class Tables(msgspec.Struct):
    """The tables of a file, their entries not decoded."""

    images: list[msgspec.Raw] | UnsetType = UNSET
    categories: list[msgspec.Raw] | UnsetType = UNSET
    annotations: list[msgspec.Raw] = []


class Annotation(msgspec.Struct, gc=False):
    """An annotation as it mostly is; it is decoded many times faster than into a dict."""

    image_id: Int64
    category_id: Int64
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool | None = 0
    id: Int64 = NO_ID


class BoxColumns:
    """Entries of the table of annotations: usual ones in columns, others as they are."""

    def __init__(self) -> None:
        self.integers = array("q")  # of each: index, id, image, category, iscrowd
        self.floats = array("d")  # of each: x, y, width, height, area
        self.others: dict[int, Any] = {}  # by index
        self.length = 0

    def read(self, entries: Iterable[Any]) -> None:
        """Add entries, undecoded or as objects."""
        decode = msgspec.json.Decoder(Annotation).decode
        for i, raw in enumerate(entries, start=self.length):
            self.length += 1
            try:
                a = decode(raw)
                x, y, width, height = a.bbox
                is_usual = width > 0 and height > 0
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
                is_usual = False
            if is_usual:
                area = width * height if a.area is None else a.area
                self.integers.extend((i, a.id, a.image_id, a.category_id, bool(a.iscrowd)))
                self.floats.extend((x, y, width, height, area))
            else:
                self.others[i] = bytes(raw) if isinstance(raw, msgspec.Raw) else raw


def read_in_windows(file: IO[bytes], columns: BoxColumns) -> dict[str, Any]:
    """Read the annotations into columns, a part of the file at a time; return the other tables.

    The parts are decoded strictly: a file that is unlike what is expected raises a DecodeError.
    """
    head, start = b"", None
    while start is None and (window := file.read(WINDOW)):
        head += window
        start = START.search(head, max(0, len(head) - len(window) - OVERLAP))
    if start is None:
        raise msgspec.DecodeError("no annotations")
    decode = msgspec.json.Decoder(Tables).decode
    before = decode(head[: start.end()] + b"]}")
    rest = head[start.end() :]
    while window := file.read(WINDOW):
        entries, rest = _split(rest + window)
        columns.read(entries)
        if not entries:
            rest += file.read()
    after = decode(b'{"annotations": [' + rest)
    columns.read(after.annotations)
    tables = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    return {key: value for own in tables for key, value in own.items() if value is not UNSET}


def _split(text: bytes) -> tuple[list[msgspec.Raw], bytes]:
    """Find the whole entries at the start of a text, and what follows them."""
    end = len(text)
    for _ in range(MAX_TRIES):
        end = text.rfind(b"},", 0, end)
        if end < 0:
            break
        try:
            return ENTRIES.decode(b"[" + text[: end + 1] + b"]"), text[end + 2 :]
        except msgspec.DecodeError:  # this one is inside of an entry, or the list has ended
            continue
    return [], text
