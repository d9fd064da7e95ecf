"""Registers the well-known data sets under the folder that ``DETECTRON2_DATASETS`` names, ``datasets`` by default."""

import os

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.coco import load_sem_seg
from detectron2.data.datasets.lvis import get_lvis_instances_meta, register_lvis_instances
from detectron2.data.datasets.register_coco import register_coco_instances

__all__ = ["register_all_ade20k", "register_all_cityscapes", "register_all_coco", "register_all_lvis"]

_COCO = {  # name -> folder of images, json
    "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
    "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
    "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
    "coco_2014_valminusminival": ("coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
    "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
    "coco_2017_test": ("coco/test2017", "coco/annotations/image_info_test2017.json"),
    "coco_2017_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json"),
}
_LVIS = {
    "lvis_v1_train": ("coco/", "lvis/lvis_v1_train.json"),
    "lvis_v1_val": ("coco/", "lvis/lvis_v1_val.json"),
    "lvis_v1_test_dev": ("coco/", "lvis/lvis_v1_image_info_test_dev.json"),
    "lvis_v1_test_challenge": ("coco/", "lvis/lvis_v1_image_info_test_challenge.json"),
}


def _join(root: str, path: str) -> str:
    return path if "://" in path else os.path.join(root, path)


def register_all_coco(root: str) -> None:
    """COCO 2014 and 2017."""
    for name, (images, json_file) in _COCO.items():
        register_coco_instances(name, _get_builtin_metadata("coco"), _join(root, json_file), _join(root, images))


def register_all_lvis(root: str) -> None:
    """LVIS v1."""
    for name, (images, json_file) in _LVIS.items():
        register_lvis_instances(name, get_lvis_instances_meta(name), _join(root, json_file), _join(root, images))


def register_all_cityscapes(root: str) -> None:
    """The fine semantic annotations of Cityscapes."""
    for split in ("train", "val", "test"):
        name = f"cityscapes_fine_sem_seg_{split}"
        images = _join(root, f"cityscapes/leftImg8bit/{split}/")
        label_maps = _join(root, f"cityscapes/gtFine/{split}/")
        DatasetCatalog.register(name, lambda x=images, y=label_maps: load_cityscapes_semantic(x, y))
        MetadataCatalog.get(name).set(
            image_dir=images,
            gt_dir=label_maps,
            evaluator_type="cityscapes_sem_seg",
            ignore_label=255,
            **_get_builtin_metadata("cityscapes"),
        )


def register_all_ade20k(root: str) -> None:
    """The 150 semantic classes of ADE20K."""
    root = os.path.join(root, "ADEChallengeData2016")
    for split, folder in (("train", "training"), ("val", "validation")):
        name = f"ade20k_sem_seg_{split}"
        images = os.path.join(root, "images", folder)
        label_maps = os.path.join(root, "annotations_detectron2", folder)
        DatasetCatalog.register(name, lambda x=images, y=label_maps: load_sem_seg(y, x, gt_ext="png", image_ext="jpg"))
        MetadataCatalog.get(name).set(
            image_root=images,
            sem_seg_root=label_maps,
            evaluator_type="sem_seg",
            ignore_label=255,
            **_get_builtin_metadata("ade20k"),
        )


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_root)
register_all_lvis(_root)
register_all_cityscapes(_root)
register_all_ade20k(_root)
