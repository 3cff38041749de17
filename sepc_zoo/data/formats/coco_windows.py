"""Decoding a large COCO file in parts, so that its annotations are never all in memory."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import IO

import msgspec
from msgspec import UNSET, UnsetType

START = re.compile(rb'"annotations"\s*:\s*\[')
WINDOW = 2**22  # bytes that are decoded at once
OVERLAP = 64  # bytes before a window in which the key of the annotations may begin
MAX_TRIES = 20  # places that are tried as the end of the entries of a window
ENTRIES = msgspec.json.Decoder(list[msgspec.Raw])


class Tables(msgspec.Struct):
    """The tables of a file, their entries not decoded."""

    images: list[msgspec.Raw] | UnsetType = UNSET
    categories: list[msgspec.Raw] | UnsetType = UNSET
    annotations: list[msgspec.Raw] = []


def read_in_windows(
    file: IO[bytes], read: Callable[[list[msgspec.Raw]], object]
) -> dict[str, list[msgspec.Raw]]:
    """Pass the annotations to ``read`` in parts; return the other tables.

    Raises:
        DecodeError: the file is not in the usual form of COCO, which is all that is accepted here.
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
        read(entries)
        if not entries:
            rest += file.read()
    after = decode(b'{"annotations": [' + rest)
    read(after.annotations)
    tables = (*msgspec.structs.asdict(before).items(), *msgspec.structs.asdict(after).items())
    return {name: table for name, table in tables if table is not UNSET}


def _split(text: bytes) -> tuple[list[msgspec.Raw], bytes]:
    """Split a text into the complete entries at its start, and the rest."""
    end = len(text)
    for _ in range(MAX_TRIES):
        end = text.rfind(b"},", 0, end)
        if end < 0:
            break
        with suppress(msgspec.DecodeError):  # this place is inside an entry, or behind the list
            return ENTRIES.decode(b"[" + text[: end + 1] + b"]"), text[end + 2 :]
    return [], text
