"""Writing files whole: whoever reads sees the old content or the new, also after a crash."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from detectron2.utils.file_io import PathManager

TEMPORARY = ".tmp"


@contextmanager
def atomic_write(path: str, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write ``path`` through: under a temporary name, and renamed once all of it is on the disk.

    Its name is ``path`` with ``.tmp`` added; it is removed when the body raises. Paths of remote storage, which has no
    renaming, are written directly.
    """
    if "://" in path:
        with PathManager.open(path, mode) as file:
            yield file
        return
    temporary = path + TEMPORARY
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    _sync_folder(os.path.dirname(path) or ".")


def _sync_folder(folder: str) -> None:
    """Put the renaming itself on the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
