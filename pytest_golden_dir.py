"""Pytest plugin that makes ``pytest --golden-dir DIR`` mean the same as ``pytest --golden-dir=DIR``.

Pytest looks for its configuration and for ``tests/conftest.py``, which defines the option, before it can know that DIR
belongs to an option; written as two words, DIR passes for the folder to test, and neither is found. Installed plugins
are the only code of ours that runs early enough to join the two words, by starting the same command again.
"""

import os
import sys
from collections.abc import Sequence

import pytest

_OPTION = "--golden-dir"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    config = pluginmanager.get_plugin("pytestconfig")
    arguments = sys.argv[1:]
    if config is None or list(config.invocation_params.args) != arguments:
        return  # called from a program by pytest.main, or a worker of xdist: not ours to restart
    joined = join_option(arguments)
    if joined != arguments:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *joined])


def join_option(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with each ``--golden-dir DIR`` as one word; a last one without DIR stays, pytest reports it."""
    joined: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        value = next(remaining, None) if argument == _OPTION else None
        joined.append(argument if value is None else f"{_OPTION}={value}")
    return joined
