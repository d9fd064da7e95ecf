"""ShapeWorld as detection data, in the layouts of LVIS, ImageNet-LVIS, COCO and Objects365; below ``shapeworld/``.

``tools/shapeworld_detection.py`` draws it. Registered names::

    shapeworld_lvis_train, _train_norare, _val      scenes with boxes; novel classes are the rare ones of LVIS
    shapeworld_image_labels                         pictures of one thing each, base and novel, with labels only
    shapeworld_coco_val, shapeworld_objects365_val  other scenes with other vocabularies
"""

import os
from pathlib import Path

from detection.data.datasets.extended_lvis import custom_register_lvis_instances
from detectron2.data.datasets import register_coco_instances

__all__ = ["FOLDER", "register_shapeworld"]
FOLDER = "shapeworld"
_LVIS_SPLITS = ("train", "train_norare", "val")


def register_shapeworld(root: str | os.PathLike) -> None:
    """Register the names above with files below ``root/shapeworld``, which need not exist."""
    folder = Path(root) / FOLDER
    for split in _LVIS_SPLITS:
        json_file = folder / "lvis" / "lvis" / f"lvis_v1_{split}.json"
        custom_register_lvis_instances(f"shapeworld_lvis_{split}", {}, str(json_file), str(folder / "lvis" / "coco"))
    images = folder / "image_labels"
    custom_register_lvis_instances(
        "shapeworld_image_labels", {}, str(images / "image_info.json"), str(images / "images"), "imagenet"
    )
    coco = folder / "coco" / "coco"
    register_coco_instances(
        "shapeworld_coco_val", {}, str(coco / "annotations" / "instances_val2017.json"), str(coco / "val2017")
    )
    objects365 = folder / "objects365"
    register_coco_instances(
        "shapeworld_objects365_val",
        {},
        str(objects365 / "annotations" / "zhiyuan_objv2_val_fixname.json"),
        str(objects365 / "val"),
    )
