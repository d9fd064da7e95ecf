"""The part of PointRend that segmentation recipes use: its colour augmentation."""

from detectron2.projects.point_rend.color_augmentation import ColorAugSSDTransform
from detectron2.utils.left_out import left_out

__all__ = ["ColorAugSSDTransform"]

__getattr__ = left_out(__name__)
