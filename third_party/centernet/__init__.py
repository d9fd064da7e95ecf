"""CenterNet2 (arXiv 2103.07461) under its public names: a dense proposal network and the ROI heads that use its scores.

Our own implementation of the published package's interface: config keys, registered names, constructor arguments and
parameter names are the published ones, so that its config files and checkpoints load. Importing it registers the
models, backbones and data sets.
"""

from centernet import data, modeling  # registers models and data sets
from centernet.config import add_centernet_config

__all__ = ["add_centernet_config", "data", "modeling"]
