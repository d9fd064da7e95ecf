"""Damaged files of every kind: each reader gives a result or one clear error, and does nothing but read.

``FUZZ_EXAMPLES=2000 python -m pytest tests/fuzz`` looks longer; ``FUZZ_RANDOM=1`` draws other examples each time.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import changed_json, changed_lines, changed_yaml, damaged
from tests.fuzz.readers import Reader, readers
from tests.fuzz.sandbox import watched

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
_ALL = readers()
_STRATEGIES: dict[str, Callable[[Reader], st.SearchStrategy[bytes]]] = {
    "json": lambda reader: changed_json(reader.example),
    "yaml": lambda reader: changed_yaml(reader.example),
    "lines": lambda reader: st.one_of(changed_lines(reader.example), damaged(reader.data())),
    "bytes": lambda reader: damaged(reader.data()),
}


_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("datasets", "tools"):  # where the commands find their own packages
        monkeypatch.syspath_prepend(str(_REPOSITORY / folder))


def write_files(reader: Reader, data: bytes, folder: Path) -> None:
    """A new ``folder`` with ``data`` as the file of ``reader``, and the other files that it needs."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in (reader.others | {reader.file: data}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read_in_watch(reader: Reader, data: bytes, folder: Path) -> str | None:
    """The message of the error that ``reader`` gives for ``data``; None if it reads it."""
    write_files(reader, data, folder)
    with watched(folder.parent), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.read(folder)
        except reader.errors as error:
            return str(error)
    return None


@pytest.mark.parametrize("reader", _ALL, ids=str)
def test_the_example_is_valid(reader: Reader, tmp_path: Path):
    assert read_in_watch(reader, reader.data(), tmp_path / "x") is None


@pytest.mark.parametrize("reader", _ALL, ids=str)
def test_a_damaged_file_gives_a_result_or_one_clear_error(reader: Reader, tmp_path: Path):
    @settings(
        max_examples=EXAMPLES,
        derandomize=not os.environ.get("FUZZ_RANDOM"),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(data=_STRATEGIES[reader.form](reader))
    def check(data: bytes) -> None:
        message = read_in_watch(reader, data, tmp_path / "x")
        assert message is None or str(tmp_path) in message, f"the message names no file: {message}"
        assert message is None or len(message) < 3000, "the message is too long to be read"

    check()
