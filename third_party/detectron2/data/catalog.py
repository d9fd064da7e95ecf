"""Registries of data sets: how to load one (``DatasetCatalog``) and what is known about it (``MetadataCatalog``)."""

import logging
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from detectron2.utils.logger import log_first_n

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


_RENAMED = {
    "class_names": "thing_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
    "stuff_class_names": "stuff_classes",
}


class _DatasetCatalog(UserDict):
    """Name -> function that returns the data set's list of dicts."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Make ``get(name)`` call ``func``.

        Raises:
            AssertionError: the name is taken, or ``func`` is not callable.
        """
        assert callable(func), f"data set {name!r}: register a function that returns its dicts, not {func!r}"
        assert name not in self, f"data set {name!r} is already registered; remove() it first or take another name"
        self[name] = func

    def get(self, name: str) -> list[dict]:  # type: ignore[override]
        """The data set's dicts. Calls the registered function each time: nothing is cached.

        Raises:
            KeyError: nothing is registered under this name.
        """
        try:
            func = self[name]
        except KeyError as error:
            raise KeyError(f"data set {name!r} is not registered; known: {', '.join(self.list())}") from error
        return func()

    def list(self) -> list[str]:
        """All registered names."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Forget a data set, so that its name can be registered again. KeyError if it is unknown."""
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.keys())})"

    __repr__ = __str__


class Metadata(SimpleNamespace):
    """Facts about one data set, each written once: setting an equal value again is fine, another one is an error."""

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:  # only called for what is not there
        if key in _RENAMED:
            new = _RENAMED[key]
            log_first_n(logging.WARNING, f"Metadata {key!r} is now called {new!r}", n=10)
            return getattr(self, new)
        if len(self.__dict__) <= 1:
            raise AttributeError(
                f"data set {self.name!r} has no metadata {key!r}; it has none at all: is its name misspelled, "
                f"or the module that registers it not imported?"
            )
        raise AttributeError(f"data set {self.name!r} has no metadata {key!r}; it has: {', '.join(self.__dict__)}")

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _RENAMED:
            new = _RENAMED[key]
            log_first_n(logging.WARNING, f"Metadata {key!r} is now called {new!r}", n=10)
            setattr(self, new, value)
            return
        if key in self.__dict__:
            old = self.__dict__[key]
            assert old == value, (
                f"metadata {key!r} of data set {self.name!r} is already {_shorten(old)} and cannot become "
                f"{_shorten(value)}; register the other data under another name"
            )
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """All facts in a new dict."""
        return dict(self.__dict__)

    def set(self, **facts: Any) -> "Metadata":
        """Write several facts; returns itself."""
        for key, value in facts.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The fact, or ``default`` where there is none."""
        try:
            return getattr(self, key)
        except AttributeError:
            return default


class _MetadataCatalog(UserDict):
    """Name -> ``Metadata``."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The metadata of a data set, created empty on first use."""
        assert name, "the name of a data set cannot be empty"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """All names with metadata."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Forget the metadata of a data set. KeyError if it is unknown."""
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.keys())})"

    __repr__ = __str__


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Named like classes because that is how they are used: there is one of each.
DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
