"""``@configurable``: constructors that take plain arguments, or a config from which those are derived."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode


def configurable(
    init_func: Callable[..., None] | None = None, *, from_config: Callable[..., dict[str, Any]] | None = None
) -> Callable[..., Any]:
    """Let a class or function be called with a config in place of its arguments.

    Write ``@configurable`` on ``__init__`` of a class that has a classmethod ``from_config(cls, cfg, ...) -> dict``, or
    ``@configurable(from_config=lambda cfg, ...: {...})`` on a function. A call whose first positional argument, or
    keyword ``cfg``, is a config goes through ``from_config``, which returns the real arguments; keywords that it does
    not know override these. Any other call passes through untouched. The ``from_config`` of the object's own class
    counts, so that of a subclass serves its parents' decorated ``__init__`` too.

    Raises:
        TypeError: wrong use: not on ``__init__``, or a ``from_config`` whose first parameter is not ``cfg``.
        AttributeError: on construction, when the class has no ``from_config``.
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or from_config is not None or init_func.__name__ != "__init__":
            raise TypeError("use @configurable on __init__, or @configurable(from_config=...) on a function")
        return _wrap_init(init_func)
    if from_config is None:
        return configurable  # written with empty parentheses
    if not inspect.isfunction(from_config):
        raise TypeError("from_config of @configurable(from_config=...) must be a function")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if function.__name__ == "__init__":
            raise TypeError("@configurable on __init__ takes no from_config: define it as a classmethod of the class")
        return _wrap_function(function, from_config)

    return decorate


def _wrap_init(init_func: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        if not hasattr(cls, "from_config"):
            raise AttributeError(f"{cls.__name__} has @configurable on __init__ and needs a classmethod 'from_config'")
        if not inspect.ismethod(cls.from_config):
            raise TypeError(f"{cls.__name__}.from_config must be a classmethod")
        if _has_config(args, kwargs):
            init_func(self, **_arguments(cls.from_config, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _wrap_function(function: Callable[..., Any], from_config: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _has_config(args, kwargs):
            return function(**_arguments(from_config, args, kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _has_config(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    candidate = args[0] if args else kwargs.get("cfg")
    omegaconf = sys.modules.get("omegaconf")  # no such object without it
    return isinstance(candidate, CfgNode) or (omegaconf is not None and isinstance(candidate, omegaconf.DictConfig))


def _arguments(
    from_config: Callable[..., dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What ``from_config`` makes of a call, overridden by the keywords that it does not take."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        name = getattr(from_config, "__qualname__", "from_config")
        raise TypeError(f"the first parameter of {name} must be named 'cfg', found {', '.join(parameters) or 'none'}")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameter.kind in variadic for parameter in parameters.values()):
        return from_config(*args, **kwargs)
    known = {name: value for name, value in kwargs.items() if name in parameters}
    return from_config(*args, **known) | {name: value for name, value in kwargs.items() if name not in known}
