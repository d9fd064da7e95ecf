"""COCO: loading and writing its json, and folders of label maps."""

import datetime
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.annotation_file import (
    AnnotationError,
    AnnotationFile,
    are_numbers,
    check_box,
    check_rle,
    is_outline,
    is_polygon,
    polygon_area,
)
from detectron2.data.datasets.register_coco import register_coco_instances
from detectron2.structures.boxes import Boxes, BoxMode
from detectron2.structures.masks import PolygonMasks
from detectron2.utils.atomic import atomic_write
from detectron2.utils.file_io import PathManager
from detectron2.utils.left_out import left_out

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "load_sem_seg", "register_coco_instances"]

__getattr__ = left_out(__name__, "register_coco_panoptic_separated")

logger = logging.getLogger(__name__)

_COPIED = ("iscrowd", "bbox", "keypoints", "category_id")


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict]:
    """The entries of a json in COCO's instance format, images by ascending id.

    Polygons with fewer than three points are dropped, and with the last one of them the annotation. Annotations without
    a mask stay, and so do crowds and images without annotations.

    Args:
        image_root: folder of the file names in the json.
        dataset_name: where to write the metadata "thing_classes" and "thing_dataset_id_to_contiguous_id". With it,
            category ids become class indices by rank; without, they stay.
        extra_annotation_keys: further keys of annotations to copy.
    Raises:
        AnnotationError: something is missing or wrong in the file; the message names image, annotation and key.
    """
    file = AnnotationFile(json_file)
    ranks = None
    if dataset_name is not None:
        ranks = _register_categories(file, dataset_name)
    reader = _AnnotationReader(file, ranks, [*_COPIED, *(extra_annotation_keys or [])])
    records = []
    for image, annotations in file.annotations():
        missing = [key for key in ("file_name", "height", "width") if key not in image]
        if missing:
            raise file.error(image, None, f"'{missing[0]}' is missing")
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "annotations": [
                    entry for annotation in annotations if (entry := reader.read(image, annotation)) is not None
                ],
            }
        )
    reader.log_oddities()
    logger.info("loaded %d images from %s", len(records), json_file)
    return records


def _register_categories(file: AnnotationFile, dataset_name: str) -> dict[int, int]:
    """Write the class names to the metadata; returns category id -> rank."""
    for category in file.categories:
        if "name" not in category:
            raise AnnotationError(f"{file.file_name}: category {category['id']} has no 'name'")
    ranks = {category["id"]: rank for rank, category in enumerate(file.categories)}
    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = [category["name"] for category in file.categories]
    if list(ranks) != list(range(1, len(ranks) + 1)) and "coco" not in dataset_name:
        logger.warning(
            "%s: category ids are not 1 to %d; they become 0 to %d", file.file_name, len(ranks), len(ranks) - 1
        )
    metadata.thing_dataset_id_to_contiguous_id = ranks
    return ranks


class _AnnotationReader:
    """Turns annotations of a COCO json into those of an entry, and counts what is odd in them."""

    def __init__(self, file: AnnotationFile, ranks: dict[int, int] | None, copied: Sequence[str]) -> None:
        self.file, self.ranks, self.copied = file, ranks, copied
        self._oddities: dict[str, list[Any]] = {}

    def read(self, image: dict, annotation: dict) -> dict | None:
        """The annotation of the entry, or None to drop it."""
        problem = self._find_problem(annotation)
        if problem:
            raise self.file.error(image, annotation, problem)
        entry = {key: annotation[key] for key in self.copied if key in annotation}
        if annotation["bbox"][2] == 0 or annotation["bbox"][3] == 0:
            self._note("a box without area", annotation)
        if annotation.get("segmentation"):
            entry["segmentation"] = self._read_mask(image, annotation)
            if not entry["segmentation"]:
                self._note("only polygons with fewer than 3 points, which drops them", annotation)
                return None
        if entry.get("iscrowd", 0) not in (0, 1):
            raise self.file.error(image, annotation, f"'iscrowd' is {entry['iscrowd']!r}, expected 0 or 1")
        if entry.get("keypoints"):
            if not isinstance(entry["keypoints"], list) or not are_numbers(entry["keypoints"]):
                raise self.file.error(image, annotation, "'keypoints' is no list of numbers")
            # Pixel indices become continuous coordinates; the third number is the visibility.
            entry["keypoints"] = [
                value + 0.5 if number % 3 != 2 else value for number, value in enumerate(entry["keypoints"])
            ]
        entry["bbox_mode"] = BoxMode.XYWH_ABS
        if self.ranks is not None:
            entry["category_id"] = self.ranks[annotation["category_id"]]
        return entry

    def log_oddities(self) -> None:
        """One warning for each kind of annotation that is unusual but not wrong."""
        for what, ids in self._oddities.items():
            logger.warning("%s: %d annotations have %s; the first is %s", self.file.file_name, len(ids), what, ids[0])

    def _find_problem(self, annotation: dict) -> str | None:
        for key in ("bbox", "category_id"):
            if key not in annotation:
                return f"'{key}' is missing"
        if self.ranks is not None and annotation["category_id"] not in self.ranks:
            return (
                f"category_id {annotation['category_id']} is not among the {len(self.ranks)} 'categories' of the file"
            )
        if annotation.get("ignore", 0) != 0:
            return f"'ignore' is {annotation['ignore']}, which is not supported; use iscrowd or drop the annotation"
        return check_box(annotation["bbox"])

    def _read_mask(self, image: dict, annotation: dict) -> list[list[float]] | dict:
        """Compressed RLE, or the polygons with at least three points."""
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            problem = check_rle(segmentation, image["height"], image["width"])
            if problem:
                raise self.file.error(image, annotation, problem)
            if isinstance(segmentation["counts"], list):
                segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
            return segmentation
        if not isinstance(segmentation, list):
            raise self.file.error(
                image, annotation, f"'segmentation' is a {type(segmentation).__name__}, expected polygons or RLE"
            )
        polygons = [polygon for polygon in segmentation if is_polygon(polygon)]
        if not all(map(is_outline, polygons)):
            raise self.file.error(
                image, annotation, "'segmentation' holds something that is no number, or lies far from any image"
            )
        if any(polygon_area(polygon) == 0 for polygon in polygons):
            self._note("a polygon without area", annotation)
        return polygons

    def _note(self, what: str, annotation: dict) -> None:
        self._oddities.setdefault(what, []).append(annotation.get("id"))


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[dict]:
    """Pairs of an image and a label map of the same name, sorted by name.

    Files without a partner are left out with a warning.

    Args:
        gt_root, image_root: folders.
        gt_ext, image_ext: endings.
    Returns:
        Entries with "file_name" and "sem_seg_file_name".
    Raises:
        AnnotationError: there are no label maps, or none has the name of an image.
    """
    images, label_maps = _files_by_stem(image_root, image_ext), _files_by_stem(gt_root, gt_ext)
    if not label_maps:
        raise AnnotationError(f"no label map *.{gt_ext} in {gt_root}")
    common = sorted(images.keys() & label_maps.keys())
    if not common:
        raise AnnotationError(
            f"no label map *.{gt_ext} in {gt_root} has the name of an image *.{image_ext} in {image_root}, "
            f"e.g. {min(label_maps)} and {min(images, default='no image at all')}"
        )
    if len(common) != len(images) or len(common) != len(label_maps):
        logger.warning(
            "%d images in %s and %d label maps in %s: the %d that have both are used",
            len(images),
            image_root,
            len(label_maps),
            gt_root,
            len(common),
        )
    logger.info("found %d images with label maps in %s", len(common), image_root)
    return [{"file_name": images[stem], "sem_seg_file_name": label_maps[stem]} for stem in common]


def _files_by_stem(folder: str, ending: str) -> dict[str, str]:
    names = [name for name in PathManager.ls(folder) if name.endswith(ending)]
    return {os.path.splitext(name)[0]: os.path.join(folder, name) for name in names}


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered data set in COCO's instance format: boxes xywh rounded to 3 decimals, ids of annotations from 1.

    Category ids are mapped back where the metadata says how. "area" is that of the mask, or of the box without one.
    """
    metadata = MetadataCatalog.get(dataset_name)
    ranks = metadata.get("thing_dataset_id_to_contiguous_id")
    original_ids = {rank: number for number, rank in ranks.items()} if ranks is not None else None

    def to_id(index: int) -> int:
        return index if original_ids is None else original_ids[index]

    images: list[dict] = []
    annotations: list[dict] = []
    for number, record in enumerate(DatasetCatalog.get(dataset_name)):
        image_id = record.get("image_id", number)
        images.append(
            {
                "id": image_id,
                "width": int(record["width"]),
                "height": int(record["height"]),
                "file_name": str(record["file_name"]),
            }
        )
        for annotation in record.get("annotations", []):
            entry = _to_coco_annotation(annotation, to_id)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
    now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
    return {
        "info": {"date_created": now, "description": f"data set {dataset_name} in COCO format"},
        "images": images,
        "categories": [{"id": to_id(index), "name": name} for index, name in enumerate(metadata.thing_classes)],
        "licenses": None,
        "annotations": annotations,
    }


def _to_coco_annotation(annotation: dict, to_id: Any) -> dict[str, Any]:
    box = BoxMode.convert([float(value) for value in annotation["bbox"]], annotation["bbox_mode"], BoxMode.XYWH_ABS)
    entry: dict[str, Any] = {"bbox": [round(float(value), 3) for value in box]}
    mask = annotation.get("segmentation")
    if not mask:
        corners = BoxMode.convert(entry["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        entry["area"] = float(Boxes([corners]).area()[0])
    elif isinstance(mask, list):
        entry["area"] = float(PolygonMasks([mask]).area()[0])
    elif isinstance(mask, dict):
        entry["area"] = float(mask_util.area(mask))
    else:
        raise TypeError(f"a segmentation must be polygons or RLE, got {type(mask).__name__}")
    entry["iscrowd"] = int(annotation.get("iscrowd", 0))
    entry["category_id"] = int(to_id(annotation["category_id"]))
    if "keypoints" in annotation:
        entry["keypoints"] = [
            value - 0.5 if number % 3 != 2 else value for number, value in enumerate(annotation["keypoints"])
        ]
        entry["num_keypoints"] = sum(visibility > 0 for visibility in annotation["keypoints"][2::3])
    if isinstance(mask, list) and mask:
        entry["segmentation"] = [np.asarray(polygon).tolist() for polygon in mask]
    elif mask:
        counts = mask["counts"]
        entry["segmentation"] = {
            "size": list(mask["size"]),
            "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
        }
    return entry


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write ``convert_to_coco_dict`` to a file, which several processes may do at a time.

    Args:
        allow_cached: leave a file that is there as it is.
    """
    output_file = str(output_file)
    PathManager.mkdirs(os.path.dirname(output_file) or ".")
    with file_lock(output_file):
        if PathManager.exists(output_file) and allow_cached:
            logger.warning("%s is used as it is; delete it if data set %s has changed", output_file, dataset_name)
            return
        content = convert_to_coco_dict(dataset_name)
        with atomic_write(output_file) as file:
            json.dump(content, file)
        logger.info("wrote data set %s in COCO format to %s", dataset_name, output_file)
