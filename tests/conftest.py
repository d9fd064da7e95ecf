"""Options and fixtures for the whole suite; the golden machinery is described in ``tests/golden/README.md``."""

import logging
import sys
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.golden_files import GOLDEN_FOLDER, KINDS, Golden, find_goldens


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        action="append",
        default=[],
        # A plain absolute string: xdist hands options to its workers as simple values.
        type=lambda folder: str(Path(folder).expanduser().resolve()),
        metavar="DIR",
        help="also run golden tests on the golden files in DIR, searched recursively (repeatable)",
    )


def pytest_configure(config: pytest.Config) -> None:
    for folder in config.getoption("--golden-dir"):
        if not Path(folder).is_dir():
            raise pytest.UsageError(f"--golden-dir {folder} is not a folder")
        if not find_goldens(Path(folder)):
            raise pytest.UsageError(
                f"--golden-dir {folder} holds no golden file; expected KIND.json and KIND.npz "
                f"where KIND is one of {', '.join(KINDS)}"
            )


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"golden: {folder} ({', '.join(golden.name for golden in find_goldens(Path(folder)))})"
        for folder in config.getoption("--golden-dir")
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    if len(marker.args) != 1 or marker.args[0] not in KINDS or "golden" not in metafunc.fixturenames:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: expected @pytest.mark.golden(KIND) on a test with an argument 'golden', "
            f"KIND one of {', '.join(KINDS)} (tests/golden_files.py)"
        )
    kind = marker.args[0]
    bundled = [golden for golden in find_goldens(GOLDEN_FOLDER) if golden.kind == kind]
    if not any(golden.name == kind for golden in bundled):
        bundled.insert(0, Golden(GOLDEN_FOLDER / kind, kind))  # absent: its test must fail, not vanish
    further = [
        golden
        for folder in metafunc.config.getoption("--golden-dir")
        for golden in find_goldens(Path(folder))
        if golden.kind == kind
    ]
    goldens = list(dict.fromkeys(bundled + further))
    ids = [_test_id(golden, metafunc.config.rootpath) for golden in goldens]
    metafunc.parametrize("golden", goldens, ids=ids, scope="function")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    golden = pyfuncitem.funcargs.get("golden")
    if not isinstance(golden, Golden):
        return (yield)
    if not (golden.meta or golden.arrays):
        pytest.fail(f"no golden file {golden.path}.json: restore it, a missing golden never skips", pytrace=False)
    result = yield
    if golden.arrays.unread:
        text = f"{golden.path}.npz: nothing was compared with {', '.join(sorted(golden.arrays.unread))}"
        if golden.path.parent == GOLDEN_FOLDER:
            pytest.fail(text, pytrace=False)
        warnings.warn(text, stacklevel=1)  # of another recording, which may store what only informs
    return result


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    """Undo what a test's set-up of loggers did: later tests of the process read standard output and ``caplog``."""
    before = {logger: (list(logger.handlers), logger.level, logger.propagate) for logger in _loggers()}
    yield
    for logger in _loggers():
        handlers, level, propagate = before.get(logger, ([], logging.NOTSET, True))
        if logger.handlers != handlers:
            logger.handlers[:] = handlers
            _forget_set_up()
        logger.propagate = propagate
        if logger.level != level:
            logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _forget_set_up() -> None:
    module = sys.modules.get("detectron2.utils.logger")  # a test may do without it
    if module is not None:
        module.setup_logger.cache_clear()  # else a second call with the same arguments adds no handler


def _test_id(golden: Golden, root: Path) -> str:
    path = golden.path
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
