"""Runs a script as if by itself, but no longer than the process that started it, and once at a time.

    python tools/quickstart_parts/attached.py LOCK tools/train_net.py …

A quickstart that was killed leaves nobody who would stop its trainings. So each of them asks now and then whether its
parent is still there, and otherwise terminates itself: a training saves its state first. The lock makes the
next one wait for that.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from prompt_pretrain.file_lock import FileLock

_SECONDS = 0.5


def main() -> None:
    parent = os.getppid()
    lock, script = FileLock(sys.argv[1]), sys.argv[2]
    while not lock.try_acquire():
        time.sleep(_SECONDS)
    threading.Thread(target=_stop_with, args=(parent,), daemon=True).start()
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).resolve().parent)  # as if python had been given the script
    runpy.run_path(script, run_name="__main__")


def _stop_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
