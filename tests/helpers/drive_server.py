"""Google Drive on the loopback, to which the real gdown is pointed.

It answers as Drive does for a public file that is too large to be scanned: a redirect to another
host, a page with a warning, and the file once the form in it is sent.
"""

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

HOSTS = re.compile(r"https://(drive|drive\.usercontent|accounts)\.google\.com(?=/)")
WARNING = """<!DOCTYPE html><html><head><title>Virus scan warning</title></head><body>
<p class="uc-warning-subcaption">The file is too large for Google to scan for viruses.</p>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">\
<input type="submit" value="Download anyway"/><input type="hidden" name="id" value="{id}">\
<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">\
</form></body></html>"""
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>
</body></html>"""
LOGIN = """<!doctype html><html><head><title>Google Drive: Sign-in</title></head><body>
<form method="post"><input name="identifier"></form></body></html>"""


class Drive(ThreadingHTTPServer):
    """A Drive that listens while it is entered as a context.

    Attributes:
        files: a function that makes the content, by the file's id.
        pages: page to send in place of a file, by its id.
        sent: ids of the files that were sent.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Callable[[], bytes]] = {}
        self.pages: dict[str, str] = {}
        self.sent: list[str] = []

    def __enter__(self) -> "Drive":
        threading.Thread(target=self.serve_forever, args=(0.005,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Drive

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        id = query["id"][0]
        if id in self.server.pages:
            self.send(200, "text/html; charset=utf-8", self.server.pages[id].encode())
        elif id not in self.server.files:
            self.send(404, "text/html; charset=utf-8", b"<html><title>Error 404</title></html>")
        elif address.path == "/uc":
            there = f"https://drive.usercontent.google.com/download?id={id}&export=download"
            self.send(303, "application/binary", b"", Location=there)
        elif "confirm" not in query:
            self.send(200, "text/html; charset=utf-8", WARNING.format(id=id).encode())
        else:
            self.server.sent.append(id)
            name = {"Content-Disposition": 'attachment; filename="checkpoint.pth"'}
            self.send(200, "application/octet-stream", self.server.files[id](), **name)

    def send(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def point_gdown_at(drive: Drive, monkeypatch) -> None:
    """Send requests for Google's hosts here, without a proxy; no other host may be asked."""
    from requests.adapters import HTTPAdapter

    send = HTTPAdapter.send

    def send_here(adapter, request, **kwargs):
        request.url = HOSTS.sub(f"http://127.0.0.1:{drive.server_port}", request.url)
        here = request.url.startswith(f"http://127.0.0.1:{drive.server_port}")
        assert here, f"a request for {request.url}"
        return send(adapter, request, **kwargs | {"proxies": {}})

    monkeypatch.setattr(HTTPAdapter, "send", send_here)
