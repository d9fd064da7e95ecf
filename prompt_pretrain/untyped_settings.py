"""Settings that follow from data, unless the command line says otherwise."""

import logging
from collections.abc import Sequence
from typing import Any

__all__ = ["UntypedSettings"]
_log = logging.getLogger(__name__)


class UntypedSettings:
    """Changes a config except where the command line has spoken.

    Args:
        cfg: a config that is not frozen.
        overrides: the ``KEY VALUE`` pairs that were typed.
    """

    def __init__(self, cfg: Any, overrides: Sequence[str] | None) -> None:
        self.cfg = cfg
        self._typed = set(list(overrides or ())[::2])

    def set(self, key: str, value: Any) -> None:
        """Set a key, with dots between its parts, if it was not typed."""
        if key in self._typed:
            return
        *path, name = key.split(".")
        node = self.cfg
        for part in path:
            node = node[part]
        if node[name] != value:
            _log.info("%s becomes %s", key, value)
            node[name] = value
