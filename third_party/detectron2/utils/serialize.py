"""Sending functions that pickle refuses, such as lambdas, to other processes."""

import importlib.util
import pickle
from collections.abc import Callable
from typing import Any

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Makes an object picklable with cloudpickle where that is installed; behaves like the object."""

    def __init__(self, obj: Any) -> None:
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        try:
            return _unpickle, (pickle.dumps(self._obj),)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            if importlib.util.find_spec("cloudpickle") is None:
                raise pickle.PicklingError(
                    f"cannot send {self._obj!r} to another process ({error}); define it at the top level of a module, "
                    f"or install cloudpickle"
                ) from error
        import cloudpickle

        return _unpickle, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # while unpickling there is none yet
            raise AttributeError(name)
        return getattr(self._obj, name)


def _unpickle(data: bytes) -> PicklableWrapper:
    return PicklableWrapper(pickle.loads(data))
