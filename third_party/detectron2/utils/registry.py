"""Registries of named classes and functions, and objects by their full name."""

import importlib
from typing import Any

from fvcore.common.registry import Registry as _Registry

__all__ = ["Registry", "locate"]


class Registry(_Registry):
    """fvcore's registry; asked for an unknown name, it lists the known ones."""

    def get(self, name: str) -> Any:
        if name not in self:
            known = ", ".join(sorted(known for known, _ in self)) or "none"
            raise KeyError(
                f"No object named '{name}' found in '{self._name}' registry! Registered: {known}; "
                f"import the module that registers it, or correct the name in the configuration"
            )
        return super().get(name)


def locate(name: str) -> Any:
    """The object of a full name such as ``package.module.Class.method``.

    Raises:
        ImportError: there is no such object.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module_name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A dependency that is missing inside the module is another matter than a name that is no module.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            continue
        except ValueError:  # an empty part
            break
        try:
            for part in parts[length:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise ImportError(f"Cannot dynamically locate object {name}!")
