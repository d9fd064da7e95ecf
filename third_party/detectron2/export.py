"""Left out: tracing, scripting and export to other formats."""

from detectron2.utils.left_out import left_out

__getattr__ = left_out(__name__)
