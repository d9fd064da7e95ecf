"""Containers for boxes, masks, objects and images."""

from detectron2.structures.boxes import (
    Boxes,
    BoxMode,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances
from detectron2.structures.keypoints import Keypoints
from detectron2.structures.masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask
from detectron2.structures.rotated_boxes import RotatedBoxes
from detectron2.utils.left_out import left_out

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "Keypoints",
    "PolygonMasks",
    "ROIMasks",
    "RotatedBoxes",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
    "polygons_to_bitmask",
]

__getattr__ = left_out(__name__, "heatmaps_to_keypoints", "pairwise_iou_rotated")
