"""The hub and its storage as two HTTP servers on the loopback."""

import contextlib
import json
import socket
import sys
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_server import api
from hub_server.faults import Fault
from hub_server.store import Files, Hub, Refusal, Repository


@dataclass
class Request:
    """A request, and what became of it."""

    method: str
    url: str  # path and query as they came
    headers: Message
    body: bytes
    origin: str  # "hub" or "storage"
    status: int | None = None  # None: no answer
    sent: int = 0  # bytes of a body that went out
    file: str | None = None  # org/name/path where a file of a repository was asked for

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.url).path)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.url).query, keep_blank_values=True)

    @property
    def token(self) -> str | None:
        scheme, _, token = (self.headers["Authorization"] or "").partition(" ")
        return token if scheme == "Bearer" else None

    @property
    def range(self) -> str | None:
        return self.headers["Range"]

    @property
    def user_agent(self) -> str:
        return self.headers["User-Agent"] or ""

    def json(self) -> Any:
        return json.loads(self.body)


class HubServer:
    """A hub that listens while it is entered as a context.

    Leaving the context raises what went wrong inside of the server, and tells of requests that
    wanted to go elsewhere (see ``client_environment``).
    """

    def __init__(self) -> None:
        self.store = Hub()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.page_size = 1000  # entries of a list that are answered at once
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.crashes: list[str] = []
        self._listeners = {origin: _Listener(self, origin) for origin in ("hub", "storage")}

    @property
    def endpoint(self) -> str:
        return self._listeners["hub"].url

    @property
    def storage(self) -> str:
        return self._listeners["storage"].url

    def __enter__(self) -> "HubServer":
        for listener in self._listeners.values():
            listener.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close()
        escaped = [request.url for request in self.requests if api.is_elsewhere(request.url)]
        if kind is None and (self.crashes or escaped):
            raise AssertionError(
                "\n".join([*self.crashes, *(f"escaped: {url}" for url in escaped)])
            )

    def close(self) -> None:
        """From now on connections are refused, those that are open are cut."""
        self.closing.set()
        for listener in self._listeners.values():
            listener.close()

    def add_user(
        self, name: str, organizations: Iterable[str] = (), *, access: str = "write"
    ) -> str:
        """The token of a new user."""
        return self.store.add_user(name, organizations, access=access)

    def add_repository(self, id: str, files: Files | None = None, **settings: Any) -> Repository:
        """A repository with these files, without a request; settings as in ``Repository``."""
        return self.store.add_repository(id, files, **settings)

    def repository(self, id: str, kind: str = "model") -> Repository:
        return self.store.repositories[kind, id]

    def misbehave(self, path: str = "*", **fault: Any) -> Fault:
        """Let something go wrong from now on; see ``Fault``. The first that fits is taken."""
        self.faults.append(Fault(path, **fault))
        return self.faults[-1]

    def behave(self) -> None:
        """An end to all faults."""
        self.faults.clear()

    def seen(self, method: str = "*", path: str = "*") -> list[Request]:
        """The requests until now that fit two patterns."""
        return [
            request
            for request in list(self.requests)
            if fnmatchcase(request.method, method) and fnmatchcase(request.path, path)
        ]

    def bytes_served(self, file: str = "*") -> int:
        """Bytes of files that went out; ``file`` is a pattern of ``org/name/path``."""
        return sum(
            request.sent
            for request in list(self.requests)
            if request.file is not None and fnmatchcase(request.file, file)
        )

    def fault_for(self, request: Request) -> Fault:
        with self.lock:
            strikes = (f for f in self.faults if f.strikes(request.method, request.path))
            return next(strikes, Fault())

    def answer(self, request: Request) -> api.Answer:
        """What a hub that works answers."""
        try:
            with self.lock:
                return api.answer(self, request)
        except Refusal as refusal:
            return api.Answer(refusal.status, refusal.content, refusal.headers)
        except Exception:
            self.crashes.append(traceback.format_exc())
            return api.Answer(500, {"error": self.crashes[-1]})


class _Listener(ThreadingHTTPServer):
    """One port; knows its open connections, so that closing leaves no thread behind."""

    request_queue_size = 64

    def __init__(self, hub: HubServer, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.origin = hub, origin
        self.connections: set[socket.socket] = set()
        self.daemon_threads = False  # they are joined by server_close
        self.thread = threading.Thread(target=self.serve_forever, args=(0.005,), daemon=True)

    @property
    def url(self) -> str:
        # Some versions of the client take what has the same host, whatever its port, for the hub.
        host = "127.0.0.1" if self.origin == "hub" else "localhost"
        return f"http://{host}:{self.server_port}"

    def start(self) -> None:
        self.thread.start()

    def close(self) -> None:
        if self.thread.is_alive():
            self.shutdown()
            self.thread.join()
        for connection in list(self.connections):
            _cut(connection)
        self.server_close()

    def process_request(self, request: socket.socket, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away is no news
            self.hub.crashes.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    wbufsize = 2**16
    disable_nagle_algorithm = True
    server: _Listener

    def answer(self) -> None:
        hub = self.server.hub
        request = Request(self.command, self.path, self.headers, self._body(), self.server.origin)
        with hub.lock:
            hub.requests.append(request)
        fault = hub.fault_for(request)
        if (fault.delay and hub.closing.wait(fault.delay)) or fault.hang_up:
            self._cut()
            return
        answer = hub.answer(request) if fault.status is None else api.failure(fault)
        answer.headers |= fault.headers
        if request.range and answer.ranges and not fault.ignore_range:
            answer = api.part(answer, request.range)
        self._send(request, answer, fault)

    # The names by which http.server finds them.
    do_HEAD = do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = answer  # noqa: N815

    def _send(self, request: Request, answer: api.Answer, fault: Fault) -> None:
        body = answer.body if request.method == "HEAD" else fault.spoil(answer.body)
        request.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if request.method != "HEAD":
            self._write(request, body[: fault.cut_after], fault.rate)
            if fault.cut_after is not None:
                self._cut()

    def _write(self, request: Request, body: bytes, rate: float | None) -> None:
        step = len(body) or 1 if rate is None else max(1, int(rate / 20))
        for start in range(0, len(body), step):
            part = body[start : start + step]
            request.sent += len(part)  # before the client can know of it
            self.wfile.write(part)
            self.wfile.flush()
            if rate is not None and self.server.hub.closing.wait(len(part) / rate):
                self._cut()
                break

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        _cut(self.connection)

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        """The requests are kept, not printed."""


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)
