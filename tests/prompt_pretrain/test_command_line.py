import errno
import threading

import pytest

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError


def raising(error: BaseException):
    def main(argv: object) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("key X is 3;\n expected 4"), 2, "error: key X is 3; expected 4\n"),
        (InputError("class 'a\x1b[2J\x9b1mé\ud800'"), 2, "error: class 'a\\x1b[2J\\x9b1mé\\ud800'\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.yaml"), 2, "error: a.yaml: No such file or directory\n"),
        (FileNotFoundError("Traceback:\n raise\n[Errno 2] No file: 'a.jpg'"), 2, "error: [Errno 2] No file: 'a.jpg'\n"),
        (OSError(errno.ENOSPC, "No space left", "out.pt"), 1, "error: out.pt: the disk is full; free some space"),
        (PermissionError(errno.EACCES, "denied", "/out"), 1, "error: /out: permission denied; choose another folder"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to continue\n"),
        (KeyboardInterrupt("half is kept in out"), 130, "interrupted; half is kept in out\n"),
    ],
)
def test_what_went_wrong_is_one_line_and_an_exit_code(error, code, line, capsys: pytest.CaptureFixture) -> None:
    assert run_command(raising(error)) == code
    assert capsys.readouterr().err.startswith(line)


def test_success_and_defects() -> None:
    assert run_command(lambda argv: None) == 0
    assert run_command(lambda argv: 3) == 3
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


def test_a_full_disk_behind_the_error_of_a_library(capsys):
    def main(argv):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    assert run_command(main, []) == 1
    assert capsys.readouterr().err.startswith("error: the disk is full; free some space")

    def fail(argv):
        try:
            raise PermissionError(errno.EACCES, "Permission denied")
        except OSError:  # dealt with; what follows is a defect and keeps its traceback
            raise RuntimeError("something else")  # noqa: B904

    with pytest.raises(RuntimeError, match="something else"):
        run_command(fail, [])


def test_a_thread_that_meets_a_full_disk_ends_in_one_line(capsys):
    def main(argv):
        def write():
            raise OSError(errno.ENOSPC, "No space left on device", "events.out")

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    before = threading.excepthook
    assert run_command(main) == 0
    said = capsys.readouterr().err
    assert said == "warning: events.out: the disk is full; free some space and run the same command again\n"
    assert threading.excepthook is before
