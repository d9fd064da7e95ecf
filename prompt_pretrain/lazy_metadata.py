"""Where data sets of detectron2 lie, and facts about their classes that are read from files when first asked for.

For the packages that register data sets. detectron2's catalog is an argument: this package does not import it.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["dataset_root", "register_lazy_metadata"]


def dataset_root() -> str:
    """The data root: ``DETECTRON2_DATASETS``, by default ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_lazy_metadata(
    catalog: Any, name: str, read: Callable[[], Mapping[str, Any]], prefixes: tuple[str, ...]
) -> None:
    """Give a data set the facts that ``read`` returns, as soon as one of them is asked for.

    Args:
        catalog: detectron2's MetadataCatalog.
        name: of the data set.
        read: fact by name.
        prefixes: what the names of such facts start with.
    Raises:
        AssertionError: the data set has metadata already.
    """
    assert name not in catalog, f"data set {name!r} has metadata already; register it under another name"
    metadata = _lazy_class(type(catalog.get(name)))(name=name)
    object.__setattr__(metadata, "_read", read)
    object.__setattr__(metadata, "_prefixes", prefixes)
    catalog[name] = metadata


_CLASSES: dict[type, type] = {}


def _lazy_class(base: type) -> type:
    """``base``, detectron2's Metadata, with facts that are read late."""
    if base not in _CLASSES:
        # Slots lie beside the facts, which are the instance's __dict__.
        _CLASSES[base] = type("LazyMetadata", (_Lazy, base), {"__slots__": ("_prefixes", "_read")})
    return _CLASSES[base]


class _Lazy:
    __slots__ = ()

    def __getattr__(self, key: str) -> Any:  # only called for what is not there
        if self._is_lazy(key) and self._complete():
            return getattr(self, key)
        return super().__getattr__(key)  # type: ignore[misc]

    def __setattr__(self, key: str, value: Any) -> None:
        if self._is_lazy(key):
            self._complete()  # a loader that finds other classes in its file is to be told
        super().__setattr__(key, value)

    def __reduce__(self) -> Any:
        self._complete()
        # Whoever unpickles it gets plain metadata: the class above is made at run time and has no name to find it by.
        return type(self).__mro__[2], (), dict(self.__dict__)

    def as_dict(self) -> dict[str, Any]:
        self._complete()
        return super().as_dict()  # type: ignore[misc]

    def _is_lazy(self, key: str) -> bool:
        try:
            return key.startswith(object.__getattribute__(self, "_prefixes"))
        except AttributeError:  # not yet set
            return False

    def _complete(self) -> bool:
        """Read what is to be read; False if that has been done."""
        read = object.__getattribute__(self, "_read")
        if read is None:
            return False
        facts = read()  # may fail, and then shall do so again
        object.__setattr__(self, "_read", None)
        for key, value in facts.items():
            setattr(self, key, value)
        return True
