"""Metadata that are read from files when first asked for, so that importing the package reads none."""

from collections.abc import Callable
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

__all__ = ["register_lazy_metadata"]

_pending: dict[str, Callable[[], dict[str, Any]]] = {}  # data set -> reads its facts


def register_lazy_metadata(name: str, read: Callable[[], dict[str, Any]]) -> None:
    """Give a data set the facts that ``read`` returns, as soon as one is asked for that it does not have yet.

    Raises:
        AssertionError: the data set has metadata already.
    """
    assert name not in MetadataCatalog, f"data set {name!r} has metadata already; register it under another name"
    _pending[name] = read
    MetadataCatalog[name] = _LazyMetadata(name=name)


class _LazyMetadata(Metadata):
    def __getattr__(self, key: str) -> Any:  # only called for what is not there
        # Private names are Python asking, for instance to pickle it.
        if not key.startswith("_") and self._complete():
            return getattr(self, key)
        return super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key.startswith("thing_"):
            self._complete()  # a loader that finds other classes in its file is to be told
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        self._complete()
        return super().as_dict()

    def _complete(self) -> bool:
        """Read what is pending; False if nothing is."""
        read = _pending.get(self.name)
        if read is None:
            return False
        facts = read()  # may fail, and then shall do so again
        del _pending[self.name]
        self.set(**facts)
        return True
