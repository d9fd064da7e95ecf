"""What every command shares: exit codes, one-line errors, logging."""

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prompt_pretrain.errors import InputError, LostProcessError

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose another output folder",
    errno.EACCES: "permission denied; choose another folder or change its permissions",
}


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run ``main`` and turn its outcome into an exit code: 0 success, 2 bad input, 1 internal failure, 130 interrupted.

    Bad input (:class:`InputError`, a missing file), a full disk and the loss of another process end in one line on
    standard error. Anything else is a defect of ours and keeps its traceback. ``DEBUG=1`` in the environment shows
    every traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        with _disk_errors_of_threads():
            return main(argv) or 0
    except KeyboardInterrupt as stopped:  # with a text if the command knows what is kept
        print(f"interrupted; {str(stopped) or 'run the same command again to continue'}", file=sys.stderr)
        return 130
    except InputError as error:
        return _complain(str(error), 2)
    except LostProcessError:  # it has been told
        return 1
    except OSError as error:
        reason = _DISK_ERRORS.get(error.errno or 0)
        where = f"{error.filename}: " if error.filename else ""
        if reason:
            return _complain(where + reason, 1)
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            # One that a process of a data loader met has come here as text.
            known = error.errno is not None or not str(error)
            text = os.strerror(error.errno or errno.ENOENT) if known else str(error).strip().splitlines()[-1]
            return _complain(where + text, 2)
        raise
    except Exception as error:
        # A library's own error while it handled that of the disk, such as torch.save's "unexpected pos".
        reason = _reason_of_the_disk(error)
        if reason:
            return _complain(reason, 1)
        raise


@contextmanager
def _disk_errors_of_threads() -> Iterator[None]:
    """Threads of libraries that write, such as TensorBoard's, end in one line on a full disk, too."""
    before = threading.excepthook

    def say(failure: threading.ExceptHookArgs) -> None:
        reason = _reason_of_the_disk(failure.exc_value)
        if reason:
            print(f"warning: {reason}", file=sys.stderr)
        else:
            before(failure)

    threading.excepthook = say
    try:
        yield
    finally:
        threading.excepthook = before


def _reason_of_the_disk(error: BaseException | None) -> str:
    """That the disk is full, where that is behind an error; "" where it is not."""
    while error is not None:
        # Not other errors of the disk: those may have been dealt with, and what followed is a defect of ours.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{error.filename}: {_DISK_ERRORS[error.errno]}" if error.filename else _DISK_ERRORS[error.errno]
        error = error.__cause__ or error.__context__
    return ""


def _complain(message: str, code: int) -> int:
    if os.environ.get("DEBUG"):
        logging.getLogger(__name__).exception("traceback, since DEBUG is set")
    # What is quoted of a file must not steer the terminal: escape sequences and the like are shown, not sent.
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(message.split()))
    print(f"error: {text}", file=sys.stderr)
    return code
