"""Registering data sets in COCO's instance format."""

import os
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.utils.left_out import left_out

__all__ = ["register_coco_instances"]

__getattr__ = left_out(__name__, "register_coco_panoptic", "register_coco_panoptic_separated")


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a json in COCO's instance format; what is evaluated with COCO's metrics.

    A name that is registered already keeps its function; other metadata than it has is an error.

    Args:
        metadata: further metadata, may be empty.
        json_file: the json.
        image_root: folder of the file names in it.
    """
    assert isinstance(name, str), f"the name of a data set must be a string, got {name!r}"
    assert isinstance(json_file, (str, os.PathLike)), f"json_file must be a path, got {json_file!r}"
    assert isinstance(image_root, (str, os.PathLike)), f"image_root must be a path, got {image_root!r}"
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: _load(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def _load(json_file: str, image_root: str, name: str) -> list[dict]:
    from detectron2.data.datasets.coco import load_coco_json  # which imports this module

    return load_coco_json(json_file, image_root, name)
