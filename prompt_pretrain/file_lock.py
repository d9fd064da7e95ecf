"""A lock between processes that ends with its holder, however that process ends."""

import errno
import fcntl
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


class FileLock:
    """An exclusive lock on a file, held until :meth:`release` or the end of the process.

    File systems without locks (some network ones) let everybody through, with a warning.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._handle: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if nobody else has it; whether we have it now."""
        if self._handle is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                return False
            logger.warning("%s cannot be locked (%s); start one process only", self.path, error.strerror)
        self._handle = handle
        return True

    def release(self) -> None:
        """Give the lock up; nothing happens without it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
