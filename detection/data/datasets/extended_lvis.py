"""Json files in LVIS' format with more in them: image labels, captions, images inside tar archives.

Used for LVIS without rare classes, LVIS with COCO's boxes, ImageNet and caption data.
"""

import logging
import os
from typing import Any

from detection.data.datasets.annotation_json import AnnotationJson, is_polygon
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from prompt_pretrain.annotation_fields import rle_problem

__all__ = ["custom_load_lvis_json", "custom_register_lvis_instances"]

logger = logging.getLogger(__name__)

_COCO_URL = "http://images.cocodataset.org/"
_COCO_NAME_LENGTH = len("000000000000.jpg")
_NUM_LVIS_CLASSES = 1203


def custom_register_lvis_instances(
    name: str, metadata: dict[str, Any], json_file: str, image_root: str, evaluator_type: str = "lvis"
) -> None:
    """Register a json for :func:`custom_load_lvis_json`.

    Args:
        metadata: further metadata, may be empty.
        evaluator_type: ``lvis``, or ``imagenet`` for images that have labels only and cannot be evaluated.
    """
    DatasetCatalog.register(name, lambda: custom_load_lvis_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type=evaluator_type, image_labels=True, **metadata
    )


def custom_load_lvis_json(json_file: str, image_root: str, dataset_name: str | None = None) -> list[dict[str, Any]]:
    """The records of a json, images by ascending id.

    Class indices are the ranks of the category ids, in annotations, ``neg_category_ids`` and ``pos_category_ids``; only
    ``not_exhaustive_category_ids`` stay ids. Annotations need no mask, crowds are left out.

    Args:
        image_root: folder of the images.
        dataset_name: whose metadata to complete.
    Returns:
        Records with ``file_name`` or ``tar_index`` (position in the archives of ``DATALOADER.TARFILE_PATH``), ``height,
        width, image_id, annotations, neg_category_ids, not_exhaustive_category_ids``, and where the json has them
        ``pos_category_ids, captions, caption_features``.
    Raises:
        InputError: something is missing or wrong in the file; the message names image, annotation and key.
    """
    content = AnnotationJson.read(json_file)
    if len(content.categories) == _NUM_LVIS_CLASSES:
        _check_numbering(content)
    if dataset_name is not None:
        content.describe(dataset_name)
    reader = _AnnotationReader(content)
    records = [
        _read_image(content, image, image_root) | {"annotations": reader.read(image)} for image in content.images
    ]
    reader.log_oddities()
    logger.info("loaded %d images from %s", len(records), json_file)
    return records


def _check_numbering(content: AnnotationJson) -> None:
    for number, index in content.class_index.items():
        if number != index + 1:
            raise content.error(
                {"id": "-"}, None, f"category id {number} is number {index + 1} of LVIS' 1203 categories"
            )


def _read_image(content: AnnotationJson, image: dict[str, Any], image_root: str) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if "file_name" in image:
        name = image["file_name"]
        # LVIS v0.5 names images of COCO 2017 as in 2014: COCO_train2014_000000391895.jpg
        record["file_name"] = os.path.join(image_root, name[-_COCO_NAME_LENGTH:] if name.startswith("COCO") else name)
    elif "coco_url" in image:
        record["file_name"] = os.path.join(image_root, _path_in_url(content, image))
    elif "tar_index" in image:
        record["tar_index"] = image["tar_index"]
    else:
        raise content.error(image, None, "has none of 'file_name', 'coco_url' and 'tar_index'")
    record |= content.size(image)
    record["image_id"] = image["id"]
    record["not_exhaustive_category_ids"] = image.get("not_exhaustive_category_ids", [])
    record["neg_category_ids"] = content.class_indices(image, "neg_category_ids")
    if "pos_category_ids" in image:
        record["pos_category_ids"] = content.class_indices(image, "pos_category_ids")
    record.update({key: image[key] for key in ("captions", "caption_features") if key in image})
    return record


def _path_in_url(content: AnnotationJson, image: dict[str, Any]) -> str:
    url = str(image["coco_url"])
    if url.startswith(_COCO_URL):
        return url.removeprefix(_COCO_URL)
    parts = url.split("/")
    if len(parts) < 2:
        raise content.error(image, None, f"'coco_url' is {url!r}, expected .../FOLDER/FILE")
    return "/".join(parts[-2:])


class _AnnotationReader:
    """Turns annotations of the json into those of a record."""

    def __init__(self, content: AnnotationJson) -> None:
        self._content = content
        self._bad_polygons: list[Any] = []

    def read(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        entries = []
        for annotation in self._content.of_image[image["id"]]:
            if annotation.get("iscrowd", 0) > 0:
                continue
            entry = {
                "bbox": annotation.get("bbox"),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": self._content.annotation_index(image, annotation),
            }
            if "segmentation" in annotation:
                entry["segmentation"] = self._read_mask(image, annotation)
            entries.append(entry)
        return entries

    def log_oddities(self) -> None:
        if self._bad_polygons:
            logger.warning(
                "%s: %d annotations have a polygon of fewer than 3 points, which stays in them; the first is %s",
                self._content.path,
                len(self._bad_polygons),
                self._bad_polygons[0],
            )

    def _read_mask(self, image: dict[str, Any], annotation: dict[str, Any]) -> Any:
        mask = annotation["segmentation"]
        if not isinstance(mask, list | dict) or not mask:
            raise self._content.error(
                image, annotation, "'segmentation' is empty; leave it out where there is no mask, or give polygons"
            )
        if isinstance(mask, dict):
            problem = rle_problem(mask, image["height"], image["width"])
            if problem:
                raise self._content.error(image, annotation, problem)
        if isinstance(mask, list) and any(len(polygon) % 2 for polygon in mask):
            raise self._content.error(
                image, annotation, "a polygon has an odd number of coordinates, expected [x, y, ...]"
            )
        if isinstance(mask, list) and not all(map(is_polygon, mask)):
            self._bad_polygons.append(annotation["id"])
        return mask
