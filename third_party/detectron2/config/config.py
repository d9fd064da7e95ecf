"""``CfgNode``: fvcore's, with our path manager, schema versions, safe YAML and errors that say what to do."""

import difflib
import re
from collections.abc import Sequence
from typing import IO, Any

from fvcore.common.config import CfgNode as _CfgNode

from detectron2.config import yaml_loading
from detectron2.config.versions import guess_version, upgrade_config
from detectron2.utils.file_io import PathManager

_UNKNOWN_KEY = re.compile(r"Non-existent (?:config )?key: (\S+)$")
_TYPE_MISMATCH = re.compile(r"Type mismatch \(<class '([\w.]+)'> vs. <class '([\w.]+)'>\)")
_MAX_MESSAGE = 1000
_CURES = {
    ("float", "int"): "write it with a point, such as 1.0",
    ("int", "float"): "write a whole number without point or exponent",
    ("str", "int"): "quote it twice, as in '\"123\"'",
    ("str", "float"): "quote it twice, as in '\"1.5\"'",
    ("bool", "int"): "write True or False",
    ("bool", "str"): "write True or False",
    ("tuple", "str"): "write a list, such as ['a', 'b'] or ('a',)",
    ("list", "str"): "write a list, such as ['a', 'b']",
}


class CfgNode(_CfgNode):
    """A tree of settings with attribute access: ``cfg.SOLVER.BASE_LR``.

    A value may be replaced by one of the same type, by or over None, or list and tuple by one another, which are
    converted. Strings from files and command lines are read as Python literals where they are ones.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[Any]:
        return PathManager.open(filename, "r")

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The content of a YAML file merged over that of its ``_BASE_`` files; see ``merge_from_file``."""
        return yaml_loading.load_yaml_with_base(filename, cls._open_cfg, allow_unsafe)

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file over this node.

        Its ``_BASE_``, one file or a list, is read first; paths are relative to the file that names them. Of Python
        tags, list comprehensions of arithmetic over ``range`` are evaluated; anything else only with
        ``allow_unsafe``, which lets the file run any code.

        Raises:
            AssertionError: no such file, or a schema version newer than this node's.
            KeyError: a key that has no default; the message names the nearest one.
            ValueError: a value of another type than its default's, or a file that is no valid configuration.
        """
        if not PathManager.isfile(cfg_filename):
            raise AssertionError(f"Config file '{cfg_filename}' does not exist!")
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        current = self.get("VERSION")
        if current is not None:
            version = loaded["VERSION"] if "VERSION" in loaded else guess_version(loaded, current, cfg_filename)
            if not isinstance(version, int):
                raise ValueError(f"{cfg_filename}: VERSION is {version!r}, expected a whole number")
            if version > current:
                raise AssertionError(
                    f"{cfg_filename} has VERSION {version}, this code knows versions up to {current}; update the code"
                )
            if version < current:
                loaded.VERSION = version
                upgrade_config(loaded, to_version=current)
        self.merge_from_other_cfg(loaded)

    def merge_from_other_cfg(self, cfg_other: _CfgNode) -> None:
        """Merge another tree over this one; raises as ``merge_from_file`` does."""
        try:
            super().merge_from_other_cfg(cfg_other)
        except (KeyError, ValueError) as error:
            raise self._explain(error) from None

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge ``[key, value, key, value, ...]`` over this node, such as from a command line.

        Raises:
            AssertionError: an odd number of entries, or a key that has no default; the message names the nearest one.
            ValueError: a value of another type than its default's.
        """
        cfg_list = list(cfg_list)
        try:
            for key in cfg_list[0::2]:
                self._check_path(key)
            super().merge_from_list(cfg_list)
        except (AssertionError, ValueError) as error:
            raise self._explain(error) from None

    def _check_path(self, key: str) -> None:
        """Yacs would look for keys inside strings and numbers."""
        node: Any = self
        for part in key.split(".")[:-1]:
            if not isinstance(node, _CfgNode):
                raise AssertionError(f"Non-existent key: {key}")
            node = node.get(part)
        if node is not None and not isinstance(node, _CfgNode):
            raise AssertionError(f"Non-existent key: {key}")

    def _explain(self, error: Exception) -> Exception:
        """The same error with a hint at the likely cure."""
        message = str(error.args[0]) if error.args else ""
        if len(message) > _MAX_MESSAGE:  # it quotes the values
            message = f"{message[: _MAX_MESSAGE // 2]} ... {message[-_MAX_MESSAGE // 2 :]}"
            error = type(error)(message)
        unknown = _UNKNOWN_KEY.search(message)
        mismatch = _TYPE_MISMATCH.match(message)
        if unknown:
            nearest = _nearest(unknown[1], _keys(self))
            return type(error)(f"{message}; the nearest known key is {nearest}") if nearest else error
        if mismatch:
            cure = _CURES.get((mismatch[1], mismatch[2]))
            return type(error)(f"{message}; {cure}") if cure else error
        return error


def _keys(node: _CfgNode, prefix: str = "") -> list[str]:
    """The full names of all keys, nodes and leaves."""
    keys = []
    for key, value in node.items():
        keys.append(prefix + str(key))
        if isinstance(value, _CfgNode):
            keys += _keys(value, f"{prefix}{key}.")
    return keys


def _nearest(key: str, known: list[str]) -> str | None:
    """The known key most like ``key``: one of the same last part, or else of similar spelling."""
    last = key.rpartition(".")[2]
    same_name = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    return next(iter(difflib.get_close_matches(key, same_name or known, n=1, cutoff=0.0)), None)


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A copy of the default configuration."""
    from detectron2.config.defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Make ``global_cfg``, which stays the same object, hold the content of ``cfg``."""
    global_cfg.clear()
    global_cfg.update(cfg)
