"""A web of our own: images, and every way in which a server can disappoint."""

import io
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (40, 32), kind: str = "JPEG") -> bytes:
    """An image file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class Web:
    """``/image/<seed>`` is an image; see :meth:`answer` for the others. ``root``: folder served below ``/files/``."""

    def __init__(self, address: str, root: Path | None) -> None:
        self.address, self.root = address, root
        self.asked: Counter[str] = Counter()
        self.stopped = threading.Event()

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def answer(self, path: str, handler: Any) -> None:
        self.asked[path] += 1
        kind, _, rest = path.lstrip("/").partition("/")
        if kind == "image":
            self._send(handler, picture(int(rest)))
        elif kind == "wide":
            self._send(handler, picture(1, (300, 60)), "application/octet-stream")
        elif kind == "small":
            self._send(handler, picture(1, (8, 8)))
        elif kind == "page":
            self._send(handler, b"<!DOCTYPE html><html>gone</html>", "text/html; charset=utf-8")
        elif kind == "disguised":
            self._send(handler, b"<!DOCTYPE html><html>gone</html>")
        elif kind == "cut":
            self._send(handler, picture(1)[:300])
        elif kind == "huge":  # ten gigabytes, as the header says
            self._send(handler, b"x" * 1000, length=10_000_000_000)
        elif kind == "endless":
            self._start(handler, None)
            while not self.stopped.is_set():
                handler.wfile.write(b"x" * 65536)
        elif kind == "hang":
            self.stopped.wait(20)
        elif kind == "drip":
            self._start(handler, 1000)
            while not self.stopped.wait(0.05):
                handler.wfile.write(b"x")
        elif kind == "slowhead":
            while not self.stopped.wait(0.05):
                handler.wfile.write(b"H")
        elif kind == "broken":
            self._send(handler, picture(1)[:100], length=5000)
        elif kind == "busy" and self.asked[path] < 3:
            handler.send_error(503)
        elif kind == "busy":
            self._send(handler, picture(3))
        elif kind == "moved":
            handler.send_response(302)
            handler.send_header("Location", self.url("image/4"))
            handler.end_headers()
        elif kind == "outside":
            handler.send_response(302)
            handler.send_header("Location", "file:///etc/passwd")
            handler.end_headers()
        elif kind == "loop":
            handler.send_response(302)
            handler.send_header("Location", self.url("loop"))
            handler.end_headers()
        elif kind == "files" and self.root is not None:
            self._send(handler, (self.root / unquote(rest)).read_bytes())
        else:
            handler.send_error(404)

    def _send(self, handler: Any, data: bytes, kind: str = "image/jpeg", length: int | None = None) -> None:
        self._start(handler, len(data) if length is None else length, kind)
        handler.wfile.write(data)

    def _start(self, handler: Any, length: int | None, kind: str = "image/jpeg") -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()


@contextmanager
def serve(root: Path | None = None) -> Iterator[Web]:
    """A running web on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the client has had enough
                web.answer(urlsplit(self.path).path, self)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    web = Web(f"http://127.0.0.1:{server.server_port}", root)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield web
    finally:
        web.stopped.set()
        server.shutdown()
        server.server_close()
