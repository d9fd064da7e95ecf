import errno
import fcntl
import logging
import multiprocessing
import os

from prompt_pretrain.file_lock import FileLock


def hold_and_die(path, acquired) -> None:
    acquired.put(FileLock(path).try_acquire())
    os._exit(9)


def test_one_holder_at_a_time(tmp_path):
    first, second = FileLock(tmp_path / "new" / "a.lock"), FileLock(tmp_path / "new" / "a.lock")
    assert first.try_acquire()
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()
    second.release()


def test_the_lock_ends_with_its_holder(tmp_path):
    context = multiprocessing.get_context("fork")
    acquired = context.Queue()
    process = context.Process(target=hold_and_die, args=(tmp_path / "a.lock", acquired))
    process.start()
    process.join()
    lock = FileLock(tmp_path / "a.lock")
    assert lock.try_acquire()
    lock.release()


def test_without_locks_everybody_passes(tmp_path, monkeypatch, caplog):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        assert FileLock(tmp_path / "a.lock").try_acquire()
    assert "cannot be locked (No locks available)" in caplog.text
