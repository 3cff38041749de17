"""Google Drive on the loopback, to which the real gdown is pointed.

It answers as Drive does for a public file that is too large to be scanned: a redirect to another
host, a page with a warning, and the file once the form in it is sent.
"""

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from loopback import LoopbackServer, QuietHandler

HTML = "text/html; charset=utf-8"
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


class Drive(LoopbackServer):
    """A Drive that listens while it is entered as a context.

    Attributes:
        files: a function that makes the content, by the file's id.
        pages: page to send in place of a file, by its id.
        sent: ids of the files that were sent.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.files: dict[str, Callable[[], bytes]] = {}
        self.pages: dict[str, str] = {}
        self.sent: list[str] = []


class _Handler(QuietHandler):
    server: Drive

    def do_GET(self) -> None:  # noqa: N802
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        id = query["id"][0]
        if id in self.server.pages:
            self.answer(200, self.server.pages[id].encode(), Content_Type=HTML)
        elif id not in self.server.files:
            self.answer(404, b"<html><title>Error 404</title></html>", Content_Type=HTML)
        elif address.path == "/uc":
            there = f"https://drive.usercontent.google.com/download?id={id}&export=download"
            self.answer(303, b"", Content_Type="application/binary", Location=there)
        elif "confirm" not in query:
            self.answer(200, WARNING.format(id=id).encode(), Content_Type=HTML)
        else:
            self.server.sent.append(id)
            headers = {"Content_Type": "application/octet-stream"}
            headers["Content_Disposition"] = 'attachment; filename="checkpoint.pth"'
            self.answer(200, self.server.files[id](), **headers)


def point_gdown_at(drive: Drive, monkeypatch) -> None:
    """Send requests for Google's hosts here, without a proxy; no other host may be asked."""
    from requests.adapters import HTTPAdapter

    send = HTTPAdapter.send

    def send_here(adapter, request, **kwargs):
        request.url = HOSTS.sub(drive.address, request.url)
        here = request.url.startswith(drive.address)
        assert here, f"a request for {request.url}"
        return send(adapter, request, **kwargs | {"proxies": {}})

    monkeypatch.setattr(HTTPAdapter, "send", send_here)
