"""What a hub, or the way to it, can do wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass
class Fault:
    """What goes wrong with requests for ``path``; several may go wrong at once.

    Attributes:
        path: pattern of the path, ``*/resolve/*/config.json`` or ``*/model.safetensors``; a large
            file has a path of the hub and one of the storage, both of which end in its name.
        method: of the request, or ``*``.
        times: how many requests suffer; None is all of them.
        skip: how many matching requests are spared first.
        status: answer with this instead; ``code`` and ``message`` are the hub's error headers.
        headers: more headers, for example ``Retry-After``.
        delay: seconds before anything is answered.
        hang_up: close the connection without an answer.
        cut_after: close the connection after so many bytes of the body.
        truncate: a well-formed answer with only so many bytes of the body.
        wrong_bytes: a body of the right length with every bit the other way around.
        rate: bytes of the body per second.
        ignore_range: answer with the whole file where a part was asked for.
    """

    path: str = "*"
    method: str = "*"
    times: int | None = None
    skip: int = 0
    status: int | None = None
    code: str | None = None
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0
    hang_up: bool = False
    cut_after: int | None = None
    truncate: int | None = None
    wrong_bytes: bool = False
    rate: float | None = None
    ignore_range: bool = False

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request suffers; counts it."""
        if self.times == 0 or not fnmatchcase(method, self.method):
            return False
        if not fnmatchcase(path, self.path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def spoil(self, body: bytes) -> bytes:
        if self.wrong_bytes:
            body = bytes(byte ^ 0xFF for byte in body)
        return body[: self.truncate]
