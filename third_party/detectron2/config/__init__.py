"""Configuration: a tree of typed defaults that YAML files and command-line pairs are merged over."""

from detectron2.config.config import CfgNode, get_cfg, global_cfg, set_global_cfg
from detectron2.config.configurable import configurable
from detectron2.config.versions import upgrade_config
from detectron2.utils.left_out import left_out

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg", "upgrade_config"]

__getattr__ = left_out(__name__, "LazyCall", "LazyConfig", "downgrade_config", "instantiate", "lazy")
