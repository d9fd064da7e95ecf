"""Metadata that are read from files when first asked for, so that importing the package reads none."""

from collections.abc import Callable
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

__all__ = ["register_lazy_metadata"]

_LAZY = ("thing_", "class_")  # how facts about classes are called


def register_lazy_metadata(name: str, read: Callable[[], dict[str, Any]]) -> None:
    """Give a data set the facts about its classes that ``read`` returns, as soon as one of them is asked for.

    Their names start with ``thing_`` or ``class_``.

    Raises:
        AssertionError: the data set has metadata already.
    """
    assert name not in MetadataCatalog, f"data set {name!r} has metadata already; register it under another name"
    metadata = _LazyMetadata(name=name)
    object.__setattr__(metadata, "_read", read)
    MetadataCatalog[name] = metadata


class _LazyMetadata(Metadata):
    __slots__ = ("_read",)  # beside the facts, which are the instance's __dict__

    def __getattr__(self, key: str) -> Any:  # only called for what is not there
        if key.startswith(_LAZY) and self._complete():
            return getattr(self, key)
        return super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key.startswith(_LAZY):
            self._complete()  # a loader that finds other classes in its file is to be told
        super().__setattr__(key, value)

    def __reduce__(self) -> str | tuple[Any, ...]:
        self._complete()
        return super().__reduce__()

    def as_dict(self) -> dict[str, Any]:
        self._complete()
        return super().as_dict()

    def _complete(self) -> bool:
        """Read what is to be read; False if that has been done."""
        read = getattr(self, "_read", None)
        if read is None:
            return False
        facts = read()  # may fail, and then shall do so again
        object.__setattr__(self, "_read", None)
        self.set(**facts)
        return True
