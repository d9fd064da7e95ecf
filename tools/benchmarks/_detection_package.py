"""Imports the package ``detection``, which ``detection.py`` of this folder, first on a script's path, would hide."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_spec = PathFinder.find_spec("detection", [str(Path(__file__).resolve().parents[2])])
assert _spec is not None and _spec.loader is not None, "the package lies beside the folder tools"
sys.modules["detection"] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["detection"])
