"""A publisher of checkpoints on the loopback, which misbehaves on demand.

It plays any publisher whose files lie at plain addresses, by being the mirror of all.
"""

import re
from dataclasses import dataclass

from loopback import LoopbackServer, QuietHandler


@dataclass
class Manners:
    """How files are sent.

    Attributes:
        ranges: whether parts of a file may be asked for.
        status: an error in place of the file.
        page: a web page in place of the file.
        redirect: whether each address redirects to itself.
        cut_after: bytes of an answer after which the connection is cut.
        stall_after: bytes of an answer after which nothing comes.
        rate: bytes in a second.
        announced: length that is announced in place of the true one; 0 for none.
        wrong: whether a byte is another one.
        location: where each address redirects to.
        length: text of the Content-Length.
        times: how many answers are like that; all later ones are good.
    """

    ranges: bool = True
    status: int | None = None
    page: str | None = None
    redirect: bool = False
    cut_after: int | None = None
    stall_after: int | None = None
    rate: int | None = None
    announced: int | None = None
    wrong: bool = False
    location: str | None = None
    length: str | None = None
    times: int = 10**6


class Publisher(LoopbackServer):
    """A server of files that listens while it is entered as a context.

    Attributes:
        files: contents by the last part of their address.
        manners: how it answers.
        requests: name of the file and range of each request.
        sent: bytes of files that went out.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.files: dict[str, bytes] = {}
        self.manners = Manners()
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0


class _Handler(QuietHandler):
    server: Publisher

    def do_GET(self) -> None:  # noqa: N802
        name, wanted = self.path.rpartition("/")[2], self.headers["Range"]
        self.server.requests.append((name, wanted))
        manners = self.server.manners
        manners.times -= 1
        if manners.times < 0:
            manners = Manners()
        if manners.redirect or manners.location is not None:
            self.answer(302, b"", Location=manners.location or self.path)
        elif manners.status is not None:
            self.answer(manners.status, b"<html>sorry")
        elif manners.page is not None:
            self.answer(200, manners.page.encode())
        elif name not in self.server.files:
            self.answer(404, b"<html>not found")
        else:
            self.send_file(self.server.files[name], wanted, manners)

    def send_file(self, content: bytes, wanted: str | None, manners: Manners) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "") if manners.ranges else None
        start, headers = (int(match[1]) if match else 0), {}
        if match and start >= len(content):
            return self.answer(416, b"")
        body = content[start:]
        if match:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if manners.wrong:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(206 if match else 200)
        if manners.announced != 0:
            headers["Content-Length"] = manners.length or str(manners.announced or len(body))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.send_slowly(body[: manners.cut_after][: manners.stall_after], manners.rate)
        if manners.stall_after is not None:
            self.server.closing.wait(60)

    def send_slowly(self, body: bytes, rate: int | None) -> None:
        step = max(1, len(body) if rate is None else rate // 10)
        for start in range(0, len(body), step):
            part = body[start : start + step]
            try:
                self.wfile.write(part)
            except OSError:  # nobody reads on
                return
            self.server.sent += len(part)
            if rate is not None and self.server.closing.wait(step / rate):
                return
