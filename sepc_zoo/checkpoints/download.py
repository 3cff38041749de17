"""Download a published checkpoint: with progress, in bounded time, resumed if that is safe."""

import os
import re
import shutil
import sys
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from huggingface_hub.utils.sha import sha_fileobj
from tqdm import tqdm

from sepc_zoo import __version__
from sepc_zoo.errors import HubError
from sepc_zoo.terminal import printable

TIMEOUT = 10.0  # seconds without a byte
SLOW_TIME, SLOW_BYTES = 20.0, 2**16  # a connection with fewer bytes in this time is closed
MAX_ATTEMPTS = 3  # successive attempts that bring less than SLOW_BYTES
MAX_BYTES = 2**32  # ten times the largest published checkpoint
CHUNK = 2**18
BAR: dict[str, Any] = {"unit": "B", "unit_scale": True, "disable": None, "leave": False}
PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")
TRANSPORT_ERRORS = (OSError, HTTPException)
TRY_LATER = (408, 425, 429, *range(500, 511))
MIRROR_HINT = (
    "check the connection and its proxy, or set SEPC_ZOO_MIRROR to a server that you reach"
)


class DownloadError(HubError):
    """A download failed for good; the message says why, and what to do if anything helps."""


class _Disconnected(Exception):  # noqa: N818
    """A connection ended early; a new one may get the rest."""


def download(url: str, path: Path, sha256: str = "") -> None:
    """Download a file; it appears at ``path`` once it is complete, else a DownloadError says why.

    A killed process leaves its part beside ``path``, and the next call resumes it; an error leaves
    nothing. A file without a hash is never resumed, because parts of two files could be joined.
    ``sha256`` has the first digits of the hash.
    """
    part = path.with_name(f"{path.name}.part")
    if not sha256:
        part.unlink(missing_ok=True)
    try:
        if "//drive.google.com/" in url:
            _download_from_drive(url, part)
        else:
            _download_in_pieces(url, part, resume=bool(sha256))
        check_hash(part, sha256)
        os.replace(part, path)
    except Exception:
        part.unlink(missing_ok=True)
        raise


def _download_in_pieces(url: str, part: Path, resume: bool) -> None:
    """Download with new connections while they bring new bytes; ``resume`` keeps what is there."""
    attempts, best = 0, size_of(part)
    while True:
        try:
            return _receive(url, part, size_of(part) if resume else 0)
        except HTTPError as error:
            error.close()
            if error.code == 416:  # the part is not shorter than the file
                part.unlink(missing_ok=True)
            elif best == 0 or error.code not in TRY_LATER:
                raise DownloadError(refusal(error, url)) from error
            reason: Exception = error
        except (*TRANSPORT_ERRORS, _Disconnected) as error:
            reason = error
        except DownloadError:
            raise
        except Exception as error:  # servers answer anything
            if not re.match(r"\w+:", url):
                hint = "check SEPC_ZOO_MIRROR or --url"
                raise DownloadError(f"{url} is no address: {hint}") from error
            raise DownloadError(
                f"{host(url)} does not answer as a server should ({in_words(error)}): {MIRROR_HINT}"
            ) from error
        attempts = 0 if size_of(part) >= best + SLOW_BYTES else attempts + 1
        best = max(best, size_of(part))
        if best == 0:
            raise DownloadError(
                f"{host(url)} cannot be reached ({in_words(reason)}): {MIRROR_HINT}"
            )
        if attempts == MAX_ATTEMPTS:
            why = f"the connection to {host(url)} broke again and again ({in_words(reason)})"
            raise DownloadError(f"{why}: try again later") from reason
        time.sleep(2**attempts / 2)


def _receive(url: str, part: Path, start: int) -> None:
    """Receive a file, or only what follows its first ``start`` bytes if the server allows that."""
    headers = {"User-Agent": f"sepc_zoo/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    opener = build_opener()  # urlopen would keep the proxies of its first call
    with opener.open(Request(url, headers=headers), timeout=TIMEOUT) as response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        watch = Watch(part, start)
        watch(0, total)
        name = printable(Path(urlsplit(url).path).name)
        bar = tqdm(desc=name, total=total, initial=start, **BAR)
        with part.open("ab" if start else "wb") as file, bar:
            while chunk := response.read1(CHUNK):
                if not watch.received and is_page(chunk):
                    raise DownloadError(page_reason(chunk + response.read1(CHUNK)))
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:  # an error of the disk, not of the connection
                    raise DownloadError(cannot_write(part, error)) from error
                bar.update(len(chunk))
                watch(watch.received + len(chunk))
        if total is not None and size_of(part) < total:
            raise _Disconnected(f"cut after {size_of(part)} of {total} bytes")


class Watch:
    """Stop a transfer that is too slow or too large."""

    def __init__(self, part: Path, start: int = 0) -> None:
        self.part, self.start, self.received = part, start, 0
        self.since, self.bytes_then = time.monotonic(), 0

    def __call__(self, received: int, total: int | None = None) -> None:
        """Check the bytes received since ``start`` and, if known, the size of the file.

        Raise a DownloadError if the file is too large, _Disconnected if the transfer is too slow.
        """
        self.received, there, total = received, self.start + received, total or 0
        if max(total, there) > MAX_BYTES:
            raise DownloadError(too_large(max(total, there)))
        folder = self.part.parent
        free = shutil.disk_usage(folder).free
        if total - there > free:
            raise DownloadError(
                f"{folder} has {free / 1e6:.0f} MB of free space, the file has {total / 1e6:.0f} "
                "MB: free some space, or set SEPC_ZOO_HOME to a folder elsewhere"
            )
        now = time.monotonic()
        if now - self.since > SLOW_TIME:
            if received - self.bytes_then < SLOW_BYTES:
                raise _Disconnected(f"under {SLOW_BYTES // 1024} KiB in {SLOW_TIME:.0f} seconds")
            self.since, self.bytes_then = now, received


def _download_from_drive(url: str, part: Path) -> None:
    """Download a public file of Google Drive, which asks for a confirmation of large ones."""
    try:
        import gdown
    except ImportError as error:
        raise DownloadError("downloads from Google Drive need gdown: pip install gdown") from error

    watch = Watch(part)
    try:
        with part.open("wb") as file:
            gdown.download(
                url,
                file,
                quiet=not sys.stderr.isatty(),
                use_cookies=False,
                timeout=TIMEOUT,
                progress=watch,
            )
    except gdown.exceptions.FileURLRetrievalError as error:  # gdown got a page, not a file
        raise DownloadError(page_reason(str(error).encode())) from error
    except (gdown.exceptions.DownloadError, _Disconnected) as error:
        raise DownloadError(f"{in_words(error)}: try again later") from error
    except OSError as error:  # also the base of the errors of requests, which have no errno
        if error.errno is not None:
            raise
        reason = in_words(innermost(error))
        raise DownloadError(f"{host(url)} cannot be reached ({reason}): {MIRROR_HINT}") from error
    with part.open("rb") as file:
        if is_page(start := file.read(20_000)):
            raise DownloadError(page_reason(start))


def check_hash(path: Path, sha256: str) -> None:
    """Raise a DownloadError unless the SHA-256 of a file starts with these digits."""
    actual = hash_of(path)
    if not actual.startswith(sha256):
        raise DownloadError(
            f"its SHA-256 starts with {actual[: len(sha256)]}, not with {sha256}: it was altered "
            "on the way, or its publisher has replaced it; try again, or from another network"
        )


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def is_page(start: bytes) -> bool:
    """Whether a web page came instead of a file: a captive portal, a used-up quota, a login."""
    return start.lstrip()[:20].lower().startswith(PAGE_STARTS)


def page_reason(content: bytes) -> str:
    text = " ".join(content.decode(errors="replace").lower().split())
    if "quota" in text or "too many users" in text:
        return "its download quota is used up for today: try again tomorrow"
    if any(phrase in text for phrase in ("sign in", "signin", "sign-in", "log in", "login")):
        return "a page that asks for a login came in place of the file: log in, then try again"
    if "change the permission" in text:  # gdown's guess at a page without the file's address
        return "it is gone, asks for a login, or was downloaded too often: try again tomorrow"
    return "a web page came in place of the file: log in to this network, then try again"


def refusal(error: HTTPError, url: str) -> str:
    if error.code in (404, 410):
        hint = "a newer version of sepc_zoo may know where it is now (pip install -U sepc_zoo)"
        return f"there is no file at {url}: {hint}"
    if 300 <= error.code < 400:
        return f"{host(url)} redirects in a circle: try again later"
    if error.code in TRY_LATER:
        return f"{host(url)} answered with error {error.code}: try again later"
    return f"{host(url)} refuses it with error {error.code}: {MIRROR_HINT}"


def cannot_write(path: Path, error: OSError) -> str:
    return (
        f"cannot write to {path.parent} ({error.strerror or error}): free some space there, or set "
        "SEPC_ZOO_HOME to a folder elsewhere"
    )


def too_large(size: int) -> str:
    return f"the server announces or sends {size / 1e9:.0f} GB, which is no checkpoint of ours"


def in_words(error: BaseException) -> str:
    """The first line of an error's text, or of the error that it wraps."""
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:.0f} seconds"
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return f"{text.splitlines()[0]:.300}"


def innermost(error: BaseException) -> BaseException:
    """The system's error inside of the errors of requests, which print each other."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def host(url: str) -> str:
    try:
        return urlsplit(url).netloc or url
    except ValueError:
        return url


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
