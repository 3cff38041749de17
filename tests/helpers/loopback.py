"""What the servers of the tests share: they listen on the loopback while entered as a context."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

S = TypeVar("S", bound="LoopbackServer")


class LoopbackServer(ThreadingHTTPServer):
    """A server at ``address``; ``closing`` is set before it refuses connections."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.closing = threading.Event()

    def __enter__(self: S) -> S:
        threading.Thread(target=self.serve_forever, args=(0.005,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuse connections from now on, and cut those that wait."""
        if not self.closing.is_set():
            self.closing.set()
            self.shutdown()
            self.server_close()


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that prints nothing."""

    def answer(self, status: int, body: bytes, **headers: object) -> None:
        """Send a whole answer; underscores in names of headers stand for hyphens."""
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
