"""Left out: configurations and weights by name. Use paths, and ``detectron2://`` for weights."""

from detectron2.utils.left_out import left_out

__getattr__ = left_out(__name__)
