"""Everything that can go wrong between a user and a publisher, and what the error must say.

The publisher is played by a mirror on the loopback, Google Drive by the server of the tests.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gdown  # noqa: F401  # its first import takes a second, and errors are timed
import pytest
from authors_checkpoints import TINY_ROWS, write_checkpoint
from drive_server import LOGIN, QUOTA, Drive, point_gdown_at
from publisher_server import Manners, Publisher

from sepc_zoo import create_model
from sepc_zoo.checkpoints import download
from sepc_zoo.published import PUBLISHED

NAME = "retinanet_test_efficientnet_pconv"
DRIVE_NAME = "fsaf_test_efficientnet_pconv"
FILE = f"{NAME}-1x.pth"
PORTAL = "<html><title>Welcome to the airport</title><form action=/accept>"


def tiny_rows(patch: pytest.MonkeyPatch) -> None:
    """Add the tiny models of the SEPC authors to the published ones."""
    for row in TINY_ROWS:
        patch.setitem(PUBLISHED, row.name, row)


def checkpoints(folder: Path) -> dict[str, bytes]:
    """The contents of two tiny checkpoints, by the names of their models."""
    names = (NAME, DRIVE_NAME)
    return {n: write_checkpoint(folder / f"{n}.pth", n).read_bytes() for n in names}


@dataclass
class Scene:
    """A publisher with a tiny checkpoint, Google Drive with another, and an empty local store."""

    publisher: Publisher
    drive: Drive
    content: dict[str, bytes]  # of the checkpoints
    home: Path
    patch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        tiny_rows(self.patch)
        digest = hashlib.sha256(self.content[NAME]).hexdigest()[:8]
        row = PUBLISHED[f"{NAME}.coco_1x"]
        row = row._replace(url=f"{self.publisher.address}/files/{FILE}", sha256=digest)
        self.patch.setitem(PUBLISHED, row.name, row)
        self.publisher.files[FILE] = self.content[NAME]
        self.drive.files[DRIVE_NAME] = lambda: self.content[DRIVE_NAME]
        point_gdown_at(self.drive, self.patch)
        self.patch.setenv("SEPC_ZOO_HOME", str(self.home))
        self.patch.delenv("SEPC_ZOO_MIRROR", raising=False)

    def left_files(self) -> list[Path]:
        """The files in the local store, but for locks."""
        files = [path for path in self.home.rglob("*") if not path.is_dir()]
        return [path for path in files if path.parent.name != ".locks"]

    def load(self, name: str = NAME) -> Any:
        return create_model(name, pretrained=True)

    def misbehaving(self, **manners: Any) -> "Scene":
        self.publisher.manners = Manners(**manners)
        return self

    def mirrored(self, address: str) -> "Scene":
        self.patch.setenv("SEPC_ZOO_MIRROR", address)
        for name in ("no_proxy", "NO_PROXY"):  # the hub of the tests is the proxy
            self.patch.setenv(name, "*")
        return self

    def showing(self, page: str) -> "Scene":
        self.drive.pages[DRIVE_NAME] = page
        return self

    def with_little_space(self) -> "Scene":
        self.patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        return self

    def with_full_disk(self) -> "Scene":
        """Each byte that is written of a download is one too many."""
        work = self.home / ".importing" / f"{NAME}.coco_1x"
        work.mkdir(parents=True)
        (work / f"{FILE}.part").symlink_to("/dev/full")
        return self

    def with_disk_full_for_drive(self) -> "Scene":
        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch.setattr(download.Watch, "__call__", refuse)
        return self

    def with_home_in_a_file(self) -> "Scene":
        self.home.write_text("no folder")
        return self

    def closed(self) -> "Scene":
        self.publisher.close()
        self.drive.close()
        return self

    def without_files(self) -> "Scene":
        self.publisher.files.clear()
        self.drive.files.clear()
        return self


Act = Callable[[Scene], Any]
Case = tuple[Act, str]


def faulty(**manners: Any) -> Act:
    return lambda s: s.misbehaving(**manners).load()


BROKE = "the connection to .* broke again and again"
# Each error comes at once.
QUICK: dict[str, Case] = {
    "address is gone, 404": (
        lambda s: s.without_files().load(),
        "there is no file at .*pip install -U sepc_zoo",
    ),
    "address is gone, 410": (faulty(status=410), "there is no file at"),
    "access refused, 403": (faulty(status=403), "refuses it with error 403: .*SEPC_ZOO_MIRROR"),
    "network wants a login, 511": (faulty(status=511), "error 511"),
    "server error 500": (faulty(status=500), "500: try again later"),
    "server error 503": (faulty(status=503), "503: try again later"),
    "rate limit 429": (faulty(status=429), "429: try again later"),
    "redirects in a circle": (faulty(redirect=True), "redirects in a circle"),
    **{
        f"redirected to {address!r}": (
            faulty(location=address),
            "as a server should|refuses it|redirects|cannot be reached|there is no file at",
        )
        for address in ("http://[::1", "http://localhost:99999/x", "http:///", "file:///etc/passwd")
    },
    "a length of many digits": (faulty(length="9" * 5000), "does not answer as a server should"),
    "a mirror with a broken address": (
        lambda s: s.mirrored("http://[::1").load(),
        "does not answer as a server should",
    ),
    "page of a captive portal": (faulty(page=PORTAL), "a web page came in place of the file"),
    "page of a login": (
        faulty(page="<!DOCTYPE html><h1>Sign in"),
        "a page that asks for a login came in place of the file",
    ),
    "connection refused": (lambda s: s.closed().load(), "cannot be reached .*SEPC_ZOO_MIRROR"),
    "no such host": (
        lambda s: s.mirrored("http://nowhere.invalid").load(),
        "nowhere.invalid cannot be reached",
    ),
    "mirror that is no address": (lambda s: s.mirrored("nowhere").load(), "is no address: check"),
    "connection cut before the first byte": (faulty(cut_after=0), "cannot be reached"),
    "wrong hash": (
        faulty(wrong=True),
        "its SHA-256 starts with [0-9a-f]{8}, not with [0-9a-f]{8}: .* --file FILE",
    ),
    "fewer bytes announced than there are": (faulty(announced=5000), "its SHA-256 starts with"),
    "a terabyte announced": (faulty(announced=10**12), "1000 GB"),
    "no space for the file": (
        lambda s: s.with_little_space().load(),
        "MB of free space, the file has .* MB: free some space, or set SEPC_ZOO_HOME",
    ),
    "disk full while it is written": (
        lambda s: s.with_full_disk().load(),
        "No space left on device.*: free some space there, or set SEPC_ZOO_HOME",
    ),
    "local store cannot be written": (
        lambda s: s.with_home_in_a_file().load(),
        "cannot write to .* set SEPC_ZOO_HOME",
    ),
    "Drive: connection refused": (
        lambda s: s.closed().load(DRIVE_NAME),
        r"drive.google.com cannot be reached \(Connection refused\): .*SEPC_ZOO_MIRROR",
    ),
    "Drive: quota used up": (
        lambda s: s.showing(QUOTA).load(DRIVE_NAME),
        "its download quota is used up for today: try again tomorrow",
    ),
    "Drive: login": (lambda s: s.showing(LOGIN).load(DRIVE_NAME), "asks for a login"),
    "Drive: file is gone": (
        lambda s: s.without_files().load(DRIVE_NAME),
        "it is gone, asks for a login, or was downloaded too often",
    ),
    "Drive: disk full while it is written": (
        lambda s: s.with_disk_full_for_drive().load(DRIVE_NAME),
        "No space left on device.*: free some space there, or set SEPC_ZOO_HOME",
    ),
}
# These take as long as the timeouts.
SLOW: dict[str, Case] = {
    "connection cut, again and again": (
        faulty(cut_after=1000),
        rf"{BROKE} .cut after 3000 of \d+ bytes.: try again later",
    ),
    "connection cut, no ranges": (faulty(cut_after=1000, ranges=False), BROKE),
    "more bytes announced than there are": (faulty(announced=10**6), BROKE),
    "no answer": (faulty(stall_after=0), r"cannot be reached \(no answer for"),
    "nothing more after some bytes": (faulty(stall_after=1000), rf"{BROKE} .no answer for"),
    "a trickle": (faulty(rate=1000), rf"{BROKE} .under 64 KiB in"),
}
