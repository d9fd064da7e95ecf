"""Json files in Open Images format: boxes of verified classes, groups marked by ``iscrowd``."""

import logging
import os
from typing import Any

import pycocotools.mask as mask_util

from detection.data.datasets.annotation_json import AnnotationJson, is_polygon
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from prompt_pretrain.annotation_fields import rle_problem

__all__ = ["load_oid_json", "register_oid_instances"]

logger = logging.getLogger(__name__)


def register_oid_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a json for :func:`load_oid_json`; what is evaluated by ``OIDEvaluator``.

    Args:
        metadata: further metadata, may be empty; ``hierarchy_file`` is the tree of classes for the evaluation.
    """
    DatasetCatalog.register(name, lambda: load_oid_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="oid", **metadata)


def load_oid_json(json_file: str, image_root: str, dataset_name: str | None = None) -> list[dict[str, Any]]:
    """The records of a json, images by ascending id: those of COCO, and the classes verified to be absent.

    Class indices are the ranks of the category ids. Polygons of fewer than three points are dropped, and with the last
    one of them the annotation.

    Args:
        dataset_name: whose metadata to complete.
    Returns:
        Records with ``file_name, height, width, image_id, annotations`` and ``neg_category_ids`` (class indices).
    Raises:
        InputError: something is missing or wrong in the file; the message names image, annotation and key.
    """
    content = AnnotationJson.read(json_file)
    if dataset_name is not None:
        content.describe(dataset_name)
    records = []
    for image in content.images:
        if "file_name" not in image:
            raise content.error(image, None, "'file_name' is missing")
        size = content.size(image)
        entries = (_read_annotation(content, image, annotation) for annotation in content.of_image[image["id"]])
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                **size,
                "image_id": image["id"],
                "neg_category_ids": content.class_indices(image, "neg_category_ids"),
                "annotations": [entry for entry in entries if entry is not None],
            }
        )
    logger.info("loaded %d images from %s", len(records), json_file)
    return records


def _read_annotation(
    content: AnnotationJson, image: dict[str, Any], annotation: dict[str, Any]
) -> dict[str, Any] | None:
    """None for an annotation whose polygons are all too short."""
    entry = {
        "category_id": content.annotation_index(image, annotation),
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": annotation.get("iscrowd", 0),
    }
    mask = annotation.get("segmentation")
    if isinstance(mask, list) and mask:
        polygons = [polygon for polygon in mask if is_polygon(polygon)]
        return entry | {"segmentation": polygons} if polygons else None
    if isinstance(mask, dict):
        problem = rle_problem(mask, image["height"], image["width"])
        if problem:
            raise content.error(image, annotation, problem)
        if isinstance(mask.get("counts"), list):
            mask = mask_util.frPyObjects(mask, *mask["size"])
        return entry | {"segmentation": mask}
    return entry
