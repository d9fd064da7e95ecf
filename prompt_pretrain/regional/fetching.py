"""One image from an address on the web or from a folder, within hard limits of time and size.

A server may hang, send a byte every ten seconds, answer with a page or with ten gigabytes: each ends in an
:class:`ImageFetchError` that says so, after at most the limits' seconds and bytes.
"""

import http.client
import io
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from prompt_pretrain.classification.decoding import ImageError, decode_image
from prompt_pretrain.errors import InputError

_CHUNK = 1 << 16
_AGENT = "Mozilla/5.0 (compatible; openvocab-prompt)"  # many servers refuse Python's own
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_BINARY_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})


@dataclass(frozen=True)
class FetchLimits:
    """Limits of one download.

    Attributes:
        timeout: seconds without an answer or a further byte.
        total_seconds: of one attempt, however slowly bytes arrive.
        max_bytes: of the file.
        min_side: of the image in pixels. max_side: larger images are shrunk to it, keeping their ratio; 0 keeps all.
        retries: further attempts after what may pass: time-outs, broken connections, busy servers.
        retry_wait: seconds before the first of them; doubled each time.
    """

    timeout: float = 20.0
    total_seconds: float = 60.0
    max_bytes: int = 20_000_000
    min_side: int = 16
    max_side: int = 1024
    retries: int = 2
    retry_wait: float = 0.5

    def __post_init__(self) -> None:
        for name in ("timeout", "total_seconds", "max_bytes"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of downloads is {getattr(self, name)}; expected more than 0")
        for name in ("min_side", "max_side", "retries", "retry_wait"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} of downloads is {getattr(self, name)}; expected at least 0")


class ImageFetchError(Exception):
    """Why an address gave no image.

    Attributes:
        passing: whether another attempt may succeed.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


def fetch_image(url: str, limits: FetchLimits, folder: Path | None = None) -> tuple[Image.Image, bytes]:
    """The RGB image at ``url``, shrunk if it is too large, and the bytes that came.

    Args:
        url: ``http://…`` or ``https://…``; a path relative to ``folder`` where one is given.
    Raises:
        ImageFetchError: no image within the limits.
    """
    data = fetch_bytes(url, limits) if folder is None else _read_below(folder, url, limits)
    try:
        image = decode_image(io.BytesIO(data), url)
    except ImageError as error:
        start = data[:512].lstrip().lower()
        looks = " (it looks like a web page)" if start.startswith((b"<!doctype", b"<html", b"<?xml")) else ""
        raise ImageFetchError(error.reason + looks) from error
    if min(image.size) < limits.min_side:
        raise ImageFetchError(f"{image.width} x {image.height} pixels, smaller than {limits.min_side}")
    if limits.max_side and max(image.size) > limits.max_side:
        scale = limits.max_side / max(image.size)
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image, data


def fetch_bytes(url: str, limits: FetchLimits) -> bytes:
    """Content of an address that says it is an image, with retries.

    Raises:
        ImageFetchError: not within the limits.
    """
    return _retry(url, limits, _read)


def check_size(url: str, limits: FetchLimits) -> None:
    """Ask an address how many bytes it would send, for a downloader that reads them all; nothing is read.

    Raises:
        ImageFetchError: too many, it does not say, or no image.
    """
    _retry(url, limits, _check_length)


def _retry(url: str, limits: FetchLimits, read: "_Reader") -> Any:
    wait = limits.retry_wait
    for attempt in range(limits.retries + 1):
        try:
            return _attempt(url, limits, read)
        except ImageFetchError as error:
            if not error.passing or attempt == limits.retries:
                raise
        time.sleep(wait)
        wait *= 2
    raise AssertionError("unreachable")


def _attempt(url: str, limits: FetchLimits, read: "_Reader") -> Any:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ImageFetchError("no http or https address")
    with _deadline(limits.total_seconds) as watch:
        try:
            quoted = urllib.parse.quote(url, safe=":/?#[]@!$&'()*+,;=%~-._")  # lists hold blanks and foreign letters
            request = urllib.request.Request(quoted, headers={"User-Agent": _AGENT, "Accept": "image/*"})
            with _opener(watch).open(request, timeout=limits.timeout) as answer:
                return read(answer, limits, watch)
        except ImageFetchError:
            raise
        except urllib.error.HTTPError as error:
            with suppress(Exception):
                error.close()
            raise ImageFetchError(f"HTTP status {error.code}", passing=error.code in _RETRIED_STATUS) from error
        except Exception as error:  # sockets, TLS and header parsers raise many kinds
            if watch.expired:
                raise ImageFetchError(f"not finished after {limits.total_seconds:g} s", passing=True) from error
            raise _as_fetch_error(error, limits) from error


def _stated_length(answer: Any, limits: FetchLimits) -> int | None:
    """Bytes that are to come, None where the server does not say; an error for too many, or no image."""
    kind = answer.headers.get_content_type() if answer.headers.get("Content-Type") else ""
    if not kind.startswith("image/") and kind not in _BINARY_TYPES:
        raise ImageFetchError(f"content type {kind}, no image")
    length = answer.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > limits.max_bytes:
        raise ImageFetchError(f"{int(length):,} bytes, more than {limits.max_bytes:,}")
    return int(length) if length.isdigit() else None


def _check_length(answer: Any, limits: FetchLimits, watch: "_Watch") -> None:
    if _stated_length(answer, limits) is None:
        raise ImageFetchError("the server does not say how many bytes it sends; the own downloader can limit them")


def _read(answer: Any, limits: FetchLimits, watch: "_Watch") -> bytes:
    length = _stated_length(answer, limits)
    parts, size = [], 0
    while chunk := answer.read1(_CHUNK):
        size += len(chunk)
        if size > limits.max_bytes:
            raise ImageFetchError(f"more than {limits.max_bytes:,} bytes")
        parts.append(chunk)
    if watch.expired:
        raise ImageFetchError(f"not finished after {limits.total_seconds:g} s", passing=True)
    if length is not None and size < length:
        raise ImageFetchError(f"broken off after {size:,} of {length:,} bytes", passing=True)
    return b"".join(parts)


def _as_fetch_error(error: Exception, limits: FetchLimits) -> ImageFetchError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return ImageFetchError(f"no answer within {limits.timeout:g} s", passing=True)
    if isinstance(reason, socket.gaierror):
        return ImageFetchError("the server's name is not known", passing=False)
    text = " ".join(str(reason).split()) or type(reason).__name__
    return ImageFetchError(text[:200], passing=isinstance(reason, OSError | http.client.HTTPException))


class _Watch:
    """Sockets of one attempt, all shut when its time is over: a time-out alone starts anew with every byte."""

    def __init__(self) -> None:
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def add(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.append(connection)
        if self.expired:
            self.end()

    def end(self) -> None:
        self.expired = True
        with self._lock:
            for connection in self._sockets:
                with suppress(Exception):
                    connection.shutdown(socket.SHUT_RDWR)


_Reader = Callable[[Any, FetchLimits, _Watch], Any]


@contextmanager
def _deadline(seconds: float) -> Iterator[_Watch]:
    watch = _Watch()
    timer = threading.Timer(seconds, watch.end)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    """An opener for http and https alone, also behind redirects, whose sockets ``watch`` knows."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch.add(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            watch.add(self.sock)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Plain, request)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Secure, request)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        PlainHandler(),
        SecureHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _read_below(folder: Path, name: str, limits: FetchLimits) -> bytes:
    """Content of a file that is a member of ``folder``."""
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath([root, path]) != root:
        raise ImageFetchError("outside the folder of images")
    try:
        size = os.path.getsize(path)
        if size > limits.max_bytes:
            raise ImageFetchError(f"{size:,} bytes, more than {limits.max_bytes:,}")
        with open(path, "rb") as file:
            return file.read(limits.max_bytes + 1)
    except OSError as error:
        raise ImageFetchError(error.strerror or str(error)) from error
