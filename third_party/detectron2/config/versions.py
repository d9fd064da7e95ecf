"""Schema versions of configuration files: 1 (the first releases) is converted, 2 is current."""

import logging
from typing import Any

from fvcore.common.config import CfgNode

_RENAMED = {  # from version 1 to 2
    "MODEL.WEIGHT": "MODEL.WEIGHTS",
    "TEST.AUG_ON": "TEST.AUG.ENABLED",
    "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
}
_NEWEST = 2
_logger = logging.getLogger(__name__)


def guess_version(cfg: CfgNode, newest: int, filename: str) -> int:
    """The schema version of a file that does not say: 1 if it has keys that only version 1 had."""
    first = any(_find(cfg, key) is not None for key in ("MODEL.WEIGHT", "TEST.AUG_ON"))
    version = 1 if first else newest
    _logger.warning("%s has no VERSION; it is taken for version %d of %d", filename, version, newest)
    return version


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """Rename the keys of an older schema in place and return ``cfg``; by default to the newest version.

    Raises:
        ValueError: there is no way from the version of ``cfg`` to ``to_version``.
    """
    target = _NEWEST if to_version is None else to_version
    version = cfg.VERSION
    if not 1 <= version <= target <= _NEWEST:
        raise ValueError(f"a configuration of VERSION {version} cannot become VERSION {target}; 1 to {_NEWEST} exist")
    if version < target:
        for old, new in _RENAMED.items():
            node = _find(cfg, old)
            if node is not None:
                _set(cfg, new, node.pop(old.rpartition(".")[2]))
        cfg.VERSION = target
    return cfg


def _find(cfg: CfgNode, key: str) -> CfgNode | None:
    """The node that holds ``key``; None if there is no such key."""
    node: Any = cfg
    *parents, last = key.split(".")
    for name in parents:
        node = node.get(name) if isinstance(node, CfgNode) else None
    return node if isinstance(node, CfgNode) and last in node else None


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(cfg.get(name), CfgNode):
            cfg[name] = type(cfg)()
        cfg = cfg[name]
    cfg[last] = value
