"""Formats of data sets, and the registration of the well-known ones."""

from detectron2.data.datasets import builtin  # registers
from detectron2.data.datasets.coco import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from detectron2.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json, register_lvis_instances
from detectron2.utils.left_out import left_out

__all__ = [
    "builtin",
    "convert_to_coco_json",
    "get_lvis_instances_meta",
    "load_coco_json",
    "load_lvis_json",
    "load_sem_seg",
    "register_coco_instances",
    "register_lvis_instances",
]

__getattr__ = left_out(
    __name__,
    "load_coco_panoptic_json",
    "load_voc_instances",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
    "register_pascal_voc",
)
