"""Watches what a reader of files does beside reading: writes, processes, network, time and memory."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

MAX_SECONDS = 30.0  # far more than any reader needs for a file of a few KB on a busy machine
MAX_GROWTH = 1 << 30  # bytes of memory that one small file may cost: the largest image allowed is 256 MiB as RGB

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "socket.connect"}
_RUNS |= {"webbrowser.open", "ftplib.connect", "urllib.Request"}
_HARMLESS = ("/dev/null", "/dev/shm", "/dev/tty", "__pycache__")


class TooSlowError(BaseException):
    """Not an ``Exception``: no reader may swallow it."""


class _Watch:
    def __init__(self) -> None:
        self.folder: str | None = None
        self.found: list[str] = []

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        if event in _RUNS:
            self.found.append(f"{event} {arguments[:2]}")
        elif event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & _WRITING)
            if writes and not isinstance(path, int):
                self._check("open for writing", path)
        elif event in _CHANGES:
            self._check(event, arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0])

    def _check(self, event: str, path: object) -> None:
        if isinstance(path, int) or path is None:
            return
        name = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
        if not name.startswith(self.folder or "") and not any(part in name for part in _HARMLESS):
            self.found.append(f"{event} {name}")


_watch: _Watch | None = None


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Inside of it, fail on a write outside of ``folder``, a process, a connection, a hang, or a blow-up of memory.

    One watch per process: an audit hook stays for the life of the interpreter.
    """
    global _watch
    if _watch is None:
        _watch = _Watch()
        sys.addaudithook(_watch)
    _watch.found.clear()
    before = _reset_peak()
    previous = signal.signal(signal.SIGALRM, _raise_too_slow)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    _watch.folder = os.path.abspath(folder) + os.sep
    try:
        yield
    finally:
        _watch.folder = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    if _watch.found:
        pytest.fail(f"a reader did more than read: {_watch.found}")
    growth = _peak() - before
    if growth > MAX_GROWTH:
        pytest.fail(f"a reader took {growth / 1e9:.1f} GB of memory")


def _raise_too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlowError(f"still reading after {MAX_SECONDS} seconds")


def _reset_peak() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes the present size
    except OSError:
        return 1 << 62
    return _peak()


def _peak() -> int:
    """The highest resident size in bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
