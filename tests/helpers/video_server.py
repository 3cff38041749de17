"""A server on the loopback that sends videos and images, and misbehaves where it is asked to."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class VideoServer:
    """Serves ``contents``, ``{path: (type, bytes)}``; what stands under ``/stall/`` never ends."""

    def __init__(self, contents):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                stalls = self.path.startswith("/stall/")
                kind, data = contents[self.path.removeprefix("/stall")]
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data) * (1 + stalls)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()
                while stalls and not ended.wait(0.05):
                    pass

            def log_message(self, *_):
                pass

        ended = self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
