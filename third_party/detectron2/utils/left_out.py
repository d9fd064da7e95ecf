"""Clear errors for the parts of detectron2 that this bundle does not provide."""

from collections.abc import Callable
from typing import Any


def left_out(module: str, *names: str) -> Callable[[str], Any]:
    """A module's ``__getattr__`` under which ``names`` raise an ImportError that says where they are to be had.

    Use it as ``__getattr__ = left_out(__name__, "name", ...)``. Without names, every public one raises.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in names or not (names or name.startswith("_")):
            raise needs_real_detectron2(f"{module}.{name}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__


def needs_real_detectron2(what: str) -> ImportError:
    """The error to raise where ``what``, such as the full name of a call, is asked for."""
    return ImportError(
        f"{what} needs the real detectron2: the one that comes with this project leaves it out; "
        f"install detectron2 from source and unset POMP_DETECTRON2 to use it"
    )
