"""Plain vision transformers: left out, the real detectron2 has it."""

from detectron2.utils.left_out import left_out

__getattr__ = left_out(__name__)
