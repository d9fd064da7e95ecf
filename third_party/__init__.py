"""Makes this folder's stand-ins importable under their public names (``detectron2``, ``centernet``, ``mask_former``).

Importing this package appends its folder to the *end* of ``sys.path``, so that an installed package of the same name
wins. Never import a stand-in as ``third_party.NAME``: the same module under two names means two registries.

The environment variable ``POMP_DETECTRON2``, read before the first ``import detectron2``, overrides the choice between
the real detectron2 and the bundled one: ``auto`` (default, as above), ``installed`` (an error without one) or
``bundled`` (the folder goes to the front).
"""

import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_FOLDER = str(Path(__file__).resolve().parent)
_VARIABLE = "POMP_DETECTRON2"
_CHOICES = ("auto", "installed", "bundled")


def detectron2_source() -> str:
    """Which detectron2 this process uses: ``"bundled"`` or ``"installed"``.

    Raises:
        ImportError: ``POMP_DETECTRON2`` asks for the other one than the one already imported.
        ValueError: ``POMP_DETECTRON2`` has an unknown value.
    """
    choice = _read_choice()
    if "detectron2" in sys.modules:
        return _check_imported(sys.modules["detectron2"], choice)
    return "installed" if choice != "bundled" and _find_installed() is not None else "bundled"


def _read_choice() -> str:
    choice = os.environ.get(_VARIABLE, "").strip().lower() or "auto"
    if choice not in _CHOICES:
        raise ValueError(f"{_VARIABLE} is {choice!r}, expected one of {', '.join(_CHOICES)}")
    return choice


def _check_imported(module: ModuleType, choice: str) -> str:
    """The source of an imported detectron2; an error where it is not the chosen one."""
    origin = getattr(module, "__file__", None)
    source = "bundled" if origin and Path(origin).resolve().is_relative_to(_FOLDER) else "installed"
    if choice not in ("auto", source):
        raise ImportError(
            f"{_VARIABLE} is {choice!r}, but the {source} detectron2 has already been imported from {origin}; "
            f"set the variable before Python starts, or import third_party before detectron2"
        )
    return source


def _find_installed() -> ModuleSpec | None:
    """The detectron2 that would be imported if this folder did not exist."""
    elsewhere = [path for path in sys.path if Path(path or ".").resolve() != Path(_FOLDER)]
    for finder in sys.meta_path:
        if finder is PathFinder:
            spec = PathFinder.find_spec("detectron2", elsewhere)
        else:  # editable installations bring finders of their own
            spec = finder.find_spec("detectron2", None) if hasattr(finder, "find_spec") else None
        if spec is not None and spec.origin is not None:  # a folder without __init__.py is no detectron2
            return spec
    return None


def _import_installed(spec: ModuleSpec) -> None:
    """Import it now: one that was built for another torch shall fail here, with the way out, and not halfway."""
    # Python asks editable installations last; on the path, their folder comes before ours for spawned workers too.
    parent = str(Path(spec.origin or "").resolve().parent.parent)
    if parent not in {str(Path(path or ".").resolve()) for path in sys.path}:
        sys.path.insert(sys.path.index(_FOLDER), parent)
    try:
        importlib.import_module("detectron2")
        if importlib.util.find_spec("detectron2._C") is not None:  # absent where it was never compiled
            importlib.import_module("torch")  # the extension needs torch's libraries in memory
            importlib.import_module("detectron2._C")
    except Exception as error:
        for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
            del sys.modules[name]
        raise ImportError(
            f"the detectron2 installed at {spec.origin} cannot be imported ({type(error).__name__}: {error}); "
            f"rebuild it for this torch, or set {_VARIABLE}=bundled to use the one that comes with this project"
        ) from error


def _set_up() -> None:
    choice = _read_choice()
    imported = sys.modules.get("detectron2")
    if imported is not None:
        _check_imported(imported, choice)
    sys.path[:] = [path for path in sys.path if path != _FOLDER]
    if choice == "bundled":
        sys.path.insert(0, _FOLDER)
        return
    sys.path.append(_FOLDER)
    if imported is not None:
        return
    spec = _find_installed()
    if spec is not None:
        _import_installed(spec)
    elif choice == "installed":
        raise ImportError(
            f"{_VARIABLE} is 'installed', but there is no detectron2 in this environment; build it from source "
            f"(https://detectron2.readthedocs.io/tutorials/install.html) or set {_VARIABLE}=bundled"
        )


_set_up()
