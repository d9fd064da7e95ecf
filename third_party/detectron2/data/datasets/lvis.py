"""LVIS: loading its json, registration, class names."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.annotation_file import (
    AnnotationError,
    AnnotationFile,
    check_box,
    is_outline,
    is_polygon,
    polygon_area,
)
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT
from detectron2.structures.boxes import BoxMode

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)


def register_lvis_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a json in LVIS' format; what is evaluated with LVIS' metrics.

    Args:
        metadata: further metadata, may be empty.
        json_file: the json.
        image_root: folder that holds "train2017" and "val2017".
    """
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict]:
    """The entries of a json in LVIS' format, images by ascending id.

    Class indices are category id - 1, unless the metadata holds "thing_dataset_id_to_contiguous_id". The lists
    "neg_category_ids" and "not_exhaustive_category_ids" stay as they are in the json.

    Args:
        image_root: folder that holds the folders named by "coco_url", such as "train2017".
        dataset_name: whose metadata to use; if there are no class names there, those of the name's data set are added.
        extra_annotation_keys: further keys of annotations to copy.
    Raises:
        AnnotationError: something is missing or wrong in the file; the message names image, annotation and key.
    """
    file = AnnotationFile(json_file)
    id_map = None
    if dataset_name is not None:
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("thing_classes") is None and _category_list(dataset_name) is not None:
            metadata.set(**get_lvis_instances_meta(dataset_name))
        id_map = metadata.get("thing_dataset_id_to_contiguous_id")
    if id_map is None:
        if any(isinstance(category["id"], str) for category in file.categories):
            raise AnnotationError(f"{json_file}: LVIS' category ids are numbers, expected no text")
        highest = max((category["id"] for category in file.categories), default=len(LVIS_CATEGORIES))
        id_map = {number: number - 1 for number in range(1, highest + 1)}
    extra = list(extra_annotation_keys or [])
    without_area: list[Any] = []
    records = []
    for image, annotations in file.annotations():
        entries = []
        for annotation in annotations:
            problem = _find_problem(annotation, id_map, extra)
            if problem:
                raise file.error(image, annotation, problem)
            if any(polygon_area(polygon) == 0 for polygon in annotation["segmentation"]):
                without_area.append(annotation.get("id"))
            entries.append(
                {
                    "bbox": annotation["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": id_map[annotation["category_id"]],
                    "segmentation": annotation["segmentation"],
                    **{key: annotation[key] for key in extra},
                }
            )
        records.append({**_read_image(file, image, image_root), "annotations": entries})
    if without_area:
        logger.warning(
            "%s: %d annotations have a polygon without area; the first is %s",
            json_file,
            len(without_area),
            without_area[0],
        )
    logger.info("loaded %d images from %s", len(records), json_file)
    return records


def _read_image(file: AnnotationFile, image: dict, image_root: str) -> dict[str, Any]:
    missing = [key for key in ("coco_url", "height", "width") if key not in image]
    if missing:
        raise file.error(image, None, f"'{missing[0]}' is missing")
    parts = image["coco_url"].split("/")
    if len(parts) < 2:
        raise file.error(image, None, f"'coco_url' is {image['coco_url']!r}, expected .../FOLDER/FILE")
    return {
        "file_name": os.path.join(image_root, parts[-2], parts[-1]),
        "height": image["height"],
        "width": image["width"],
        "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        "neg_category_ids": image.get("neg_category_ids", []),
        "image_id": image["id"],
    }


def _find_problem(annotation: dict, id_map: dict[int, int], extra: Sequence[str]) -> str | None:
    for key in ("bbox", "category_id", "segmentation", *extra):
        if key not in annotation:
            return f"'{key}' is missing"
    if annotation["category_id"] not in id_map:
        return f"category_id {annotation['category_id']} is not one of the {len(id_map)} categories"
    problem = check_box(annotation["bbox"])
    if problem:
        return problem
    polygons = annotation["segmentation"]
    usable = isinstance(polygons, list) and polygons and all(map(is_polygon, polygons))
    if not usable or not all(map(is_outline, polygons)):
        return (
            "'segmentation' must be polygons of at least three points [x, y, x, y, x, y, ...] in or near the image, "
            "and at least one"
        )
    return None


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Metadata by name: of COCO where it holds "cocofied", of LVIS v1 where it holds "v1".

    Raises:
        ValueError: neither.
    """
    categories = _category_list(dataset_name)
    if categories is None:
        raise ValueError(
            f"no class names for {dataset_name!r}: its name holds neither 'v1' nor 'cocofied' (LVIS v0.5 needs the "
            f"real detectron2)"
        )
    if categories == "coco":
        return _get_builtin_metadata("coco")
    return {
        "thing_classes": [category["synonyms"][0] for category in LVIS_CATEGORIES],
        "class_image_count": LVIS_CATEGORY_IMAGE_COUNT,
    }


def _category_list(dataset_name: str) -> str | None:
    if "cocofied" in dataset_name:
        return "coco"
    return "lvis_v1" if "v1" in dataset_name else None
