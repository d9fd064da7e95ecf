"""Set-up of loggers, messages that are not repeated endlessly, and a small table."""

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from types import FrameType
from typing import IO, Any

from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_TIME = "%m/%d %H:%M:%S"
_counts: Counter[Any] = Counter()
_last_times: dict[Any, float] = {}


class _Formatter(logging.Formatter):
    """``[time name]: message``, warnings and errors by name; in colours where asked for."""

    def __init__(self, full_name: str, short_name: str, color: bool) -> None:
        super().__init__(datefmt=_TIME)
        self._full_name = full_name
        self._short_name = short_name
        self._color = color

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        name = record.name
        if name == self._full_name or name.startswith(self._full_name + "."):
            name = (self._short_name + name[len(self._full_name) :]).lstrip(".")
        if not self._color:
            return f"[{record.asctime}] {name} {record.levelname}: {record.message}"
        head = colored(f"[{record.asctime} {name}]: ", "green")
        if record.levelno >= logging.WARNING:
            head += colored(record.levelname, "red", attrs=["bold"]) + " "
        return head + record.message

    def usesTime(self) -> bool:  # noqa: N802
        return True


class _StdoutHandler(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at the time, which tests and notebooks replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> IO[str]:
        return sys.stdout


class _FileHandler(logging.StreamHandler):
    """Says in one line, not in a traceback per message, that its file cannot be written, such as on a full disk."""

    def __init__(self, filename: str) -> None:
        super().__init__(_open_log(filename))
        self._filename = filename
        self._told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"{self._filename}: {error.strerror}; messages are missing there", file=sys.stderr)


@functools.cache  # a second call with the same arguments must not double the lines
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
) -> logging.Logger:
    """Let the logger ``name`` write to standard output (rank 0 only) and to a file (every rank).

    Args:
        output: a folder, for ``log.txt`` in it, or a file ending in .txt or .log; None for no file. Ranks above 0
            add ``.rank<k>`` to the name.
        color: colours on standard output if it is a terminal.
        name: root of the hierarchy of loggers to set up; its messages no longer reach the root logger.
        abbrev_name: what to print for ``name``; "" leaves it out; None is "d2" for "detectron2".
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    if distributed_rank == 0 and not any(isinstance(handler, _StdoutHandler) for handler in logger.handlers):
        to_terminal = sys.stdout is not None and sys.stdout.isatty()
        _add_handler(logger, _StdoutHandler(), _Formatter(name, abbrev_name, color and to_terminal))
    if output is not None:
        is_file = output.endswith((".txt", ".log"))
        filename = output if is_file else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename += f".rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename) or ".")
        _add_handler(logger, _FileHandler(filename), _Formatter(name, abbrev_name, color=False))
    return logger


def _add_handler(logger: logging.Logger, handler: logging.Handler, formatter: logging.Formatter) -> None:
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


@functools.cache  # several loggers may share one file
def _open_log(filename: str) -> IO[str]:
    file = PathManager.open(filename, "a", buffering=1)  # line by line: nothing is lost in a crash
    atexit.register(_close, file)
    return file


def _close(file: IO[str]) -> None:
    with suppress(OSError):  # the disk is full still, as has been said
        file.close()


def _caller() -> tuple[str, tuple[str, int, str]]:
    """Module name and place of the nearest frame outside this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    if frame is None:
        return "detectron2", ("", 0, "")
    module = frame.f_globals.get("__name__", "detectron2")
    place = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
    return ("detectron2" if module == "__main__" else module), place


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log only the first ``n`` times: of this line of code (``key`` "caller"), of this "message", or of both."""
    keys = (key,) if isinstance(key, str) else key
    if not keys or set(keys) - {"caller", "message"}:
        raise ValueError(f"key of log_first_n is {key!r}, expected 'caller', 'message' or both in a tuple")
    module, place = _caller()
    counted = ("first", place if "caller" in keys else None, msg if "message" in keys else None)
    _counts[counted] += 1
    if _counts[counted] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every ``n`` times that this line of code is reached."""
    module, place = _caller()
    _counts["every", place] += 1
    if (_counts["every", place] - 1) % n == 0:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log if this line of code did not within the last ``n`` seconds."""
    module, place = _caller()
    now = time.monotonic()
    if place not in _last_times or now - _last_times[place] >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _last_times[place] = now


def create_small_table(small_dict: dict[str, Any]) -> str:
    """A table of one row, for a few results: keys above, values below."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )


def _log_api_usage(identifier: str) -> None:
    """Called by projects at import; nothing is reported to anyone."""
