"""A server on the loopback that sends videos and images, and misbehaves where it is asked to."""

from loopback import LoopbackServer, QuietHandler


class VideoServer(LoopbackServer):
    """Serves ``contents``, ``{path: (type, bytes)}``; what stands under ``/stall/`` never ends."""

    def __init__(self, contents):
        super().__init__(_Handler)
        self.contents, self.url = contents, self.address


class _Handler(QuietHandler):
    server: VideoServer

    def do_GET(self):  # noqa: N802
        stalls = self.path.startswith("/stall/")
        kind, data = self.server.contents[self.path.removeprefix("/stall")]
        self.answer(200, data, Content_Type=kind, Content_Length=len(data) * (1 + stalls))
        self.wfile.flush()
        while stalls and not self.server.closing.wait(0.05):
            pass
