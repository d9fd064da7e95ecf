"""The coverage-guided pass: what of it needs no atheris, and one second of it where atheris is installed."""

import hashlib
import importlib.util
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prompt_pretrain.errors import InputError
from tests.fuzz import coverage_guided
from tests.fuzz.coverage_guided import Findings, Target, in_process, main, problem_with, statistics
from tests.fuzz.readers import Reader, npy_bytes, reader_named
from tests.fuzz.structured import change_inside
from tests.fuzz.test_fuzzed_files import _surroundings  # noqa: F401  (a fixture)


def reverse(data: bytes, limit: int) -> bytes:
    return data[::-1][:limit]


def changed(name: str, seed: int) -> tuple[bytes, bytes]:
    """The valid file of a reader, and it with something inside changed."""
    reader = reader_named(name)
    data = reader.data()
    result = change_inside(data, reader.file, 3 * len(data), reverse, random.Random(seed))
    assert result is not None
    return data, result


def check_zip(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None


def check_state(data: bytes) -> None:
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    check_zip(data[:-32])


def check_safetensors(data: bytes) -> None:
    (length,) = struct.unpack("<Q", data[:8])
    assert len(data) == 8 + length + 4 * 8 * 4  # the numbers are as they were


def check_tar(data: bytes) -> None:
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    right = [b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:])) == block[148:156] for block in blocks]
    assert sum(right) >= 3


def check_png(data: bytes) -> None:
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        stop = at + 8 + length
        assert struct.unpack(">I", data[stop : stop + 4])[0] == zlib.crc32(data[at + 4 : stop])
        at = stop + 4


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("load_prompt.pth", check_zip),
        ("CheckpointFolder.load", check_state),
        ("load_prompt.safetensors", check_safetensors),
        ("tar images", check_tar),
        ("open_image.png", check_png),
        ("load.coco", json.loads),
    ],
)
def test_changed_containers_stay_whole(name: str, check: Callable[[bytes], Any]):
    different = 0
    for seed in range(10):
        data, result = changed(name, seed)
        check(result)
        different += result != data
    assert different > 5


def test_the_length_of_a_changed_npy_header_is_right():
    data = npy_bytes([1.5, 2.5])
    result = change_inside(data, "a.npy", 400, lambda header, limit: header + b"   ", random.Random(0))
    assert result == data[:8] + struct.pack("<H", 121) + data[10:128] + b"   " + data[128:]


@pytest.mark.parametrize("file", ["a.json", "a.pth", "a.safetensors", "a.npy", "a.tar", "a.png", "state-1.pth", "x"])
def test_files_beyond_repair_are_left_to_plain_changes(file: str):
    for data in (b"", b"PK", b"PK\3\4" + bytes(40), b"{", b"\x89PNG\r\n\x1a\n", b"abc"):
        result = change_inside(data, file, 100, reverse, random.Random(0))
        assert result is None or isinstance(result, bytes)


def _reader(read: Callable[[Path], Any]) -> Reader:
    return Reader("r", "a.txt", b"abc", read)


def _names_no_file(folder: Path) -> None:
    raise InputError("something is wrong")


def _is_clear(folder: Path) -> None:
    raise InputError(f"{folder / 'a.txt'} is wrong")


def _is_endless(folder: Path) -> None:
    raise InputError(f"{folder / 'a.txt'} is {'x' * 4000}")


def _breaks(folder: Path) -> None:
    raise KeyError("a")


def _writes(folder: Path) -> None:
    os.mkdir(folder.parent.parent / "elsewhere")


def _is_slow(folder: Path) -> None:
    stop = time.process_time() + 0.02
    while time.process_time() < stop:
        pass


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (_is_clear, None),
        (_names_no_file, "the_message_names_no_file"),
        (_is_endless, "the_message_is_too_long"),
        (_breaks, "KeyError_test_coverage_guided.py__breaks"),
        (_writes, "Failed"),
        (_is_slow, "slow"),
    ],
)
def test_what_goes_wrong_is_kept_once(read: Callable[[Path], Any], kind: str | None, tmp_path: Path):
    (tmp_path / "work").mkdir()
    target = Target(_reader(read), tmp_path / "work", Findings(tmp_path / "findings"), slow=0.015)
    target(b"one")
    if read is not _writes:
        target(b"two")
    found = sorted((tmp_path / "findings").glob("*.txt"))
    assert len(found) == (kind is not None)
    if kind:
        assert found[0].name.startswith(kind)
        assert found[0].with_suffix("").read_bytes() == b"one"


def test_messages_are_judged(tmp_path: Path):
    assert problem_with(None, tmp_path) is None
    assert problem_with(f"{tmp_path}/a.txt is wrong", tmp_path) is None
    assert problem_with("a.txt is wrong", tmp_path) == "the message names no file"


@pytest.mark.parametrize(
    ("run", "end"),
    [
        (lambda: os._exit(0), ""),
        (lambda: os._exit(77), "ended with exit code 77"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "ended with SIGSEGV"),
        (lambda: time.sleep(30), "no progress in 0.5 seconds"),
    ],
)
def test_crashes_and_hangs_are_seen_from_outside(run, end, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coverage_guided, "_HANG_SECONDS", 0.5)
    assert in_process(tmp_path, tmp_path / "log.txt", run) == end
    assert ("Segmentation fault" in (tmp_path / "log.txt").read_text()) == ("SEGV" in end)


def test_the_numbers_of_a_log():
    log = """INFO: seed corpus: files: 3
#4\tINITED cov: 50 ft: 61 corp: 3/20b exec/s: 0 rss: 40Mb
#90\tNEW    cov: 52 ft: 70 corp: 4/30b lim: 4096 exec/s: 0 rss: 40Mb L: 3/9 MS: 1 Custom-
#1000\tDONE   cov: 52 ft: 71 corp: 5/31b lim: 4096 exec/s: 500 rss: 40Mb
"""
    numbers = {"executions": 1000, "seed edges": 50, "edges": 52, "seed features": 61, "features": 71}
    assert statistics(log) == numbers
    assert statistics("") == dict.fromkeys(numbers, 0)


def test_atheris_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: atheris is not installed; `pip install -c")


@pytest.mark.slow
def test_a_second_of_it(tmp_path: Path):
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz.coverage_guided", "--output", str(tmp_path), "--drawn", "5"]
    command += ["--seconds", "1", "--reader", "load_vocabulary.list"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "load_vocabulary.list" in done.stdout and done.stdout.rstrip().endswith("none")
    assert list((tmp_path / "load_vocabulary.list" / "corpus").iterdir())
