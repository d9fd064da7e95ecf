"""Metadata of detection whose classes are read from files when first asked for."""

from collections.abc import Callable
from typing import Any

from detectron2.data import MetadataCatalog
from prompt_pretrain import lazy_metadata

__all__ = ["register_lazy_metadata"]

_LAZY = ("thing_", "class_")  # how facts about classes are called


def register_lazy_metadata(name: str, read: Callable[[], dict[str, Any]]) -> None:
    """Give a data set the facts about its classes that ``read`` returns, as soon as one of them is asked for.

    Their names start with ``thing_`` or ``class_``.

    Raises:
        AssertionError: the data set has metadata already.
    """
    lazy_metadata.register_lazy_metadata(MetadataCatalog, name, read, _LAZY)
