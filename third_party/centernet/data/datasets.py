"""Registers the data sets of CenterNet2 under the folder that ``DETECTRON2_DATASETS`` names, ``datasets`` by default.

All are in COCO's format and read when they are first used; class names come from their json.
"""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances

__all__ = ["register_all"]

_INSTANCES = {  # name -> folder of images, json
    "objects365_train": ("objects365/train", "objects365/annotations/objects365_train.json"),  # version 1
    "objects365_val": ("objects365/val", "objects365/annotations/objects365_val.json"),
    "nuimages_train": ("nuimages", "nuimages/annotations/nuimages_v1.0-train.json"),
    "nuimages_val": ("nuimages", "nuimages/annotations/nuimages_v1.0-val.json"),
    "nuimages_mini": ("nuimages", "nuimages/annotations/nuimages_v1.0-mini.json"),
    "coco_2017_unlabeled": ("coco/unlabeled2017", "coco/annotations/image_info_unlabeled2017.json"),
}
_PSEUDO_LABELED = {  # annotations are another detector's, with its "score"
    "coco_un_yolov4_55_0.5": ("coco/unlabeled2017", "coco/annotations/yolov4_cocounlabeled_55_ann0.5.json"),
}


def register_all(root: str) -> None:
    """Register every data set of this module that is not registered yet."""
    for name, (images, json_file) in _INSTANCES.items():
        if name not in DatasetCatalog:
            register_coco_instances(name, {}, os.path.join(root, json_file), os.path.join(root, images))
    for name, (images, json_file) in _PSEUDO_LABELED.items():
        if name not in DatasetCatalog:
            _register_pseudo_labeled(name, os.path.join(root, json_file), os.path.join(root, images))


def _register_pseudo_labeled(name: str, json_file: str, image_root: str) -> None:
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name, extra_annotation_keys=["score"]))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco")


register_all(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
