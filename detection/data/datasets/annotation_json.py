"""COCO-style json files as images with their annotations; one clear error for whatever is wrong in them.

detectron2's own loaders know nothing of image labels, so what reads those starts here.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from prompt_pretrain.annotation_fields import find_wrong_row
from prompt_pretrain.errors import InputError

__all__ = ["AnnotationJson", "check_box", "is_polygon", "not_found"]

logger = logging.getLogger(__name__)

_LISTS = {"images": "image", "annotations": "annotation", "categories": "category"}


@dataclass(frozen=True)
class AnnotationJson:
    """Content of a json.

    Attributes:
        path: of the file.
        images: by ascending id.
        categories: by ascending id.
        of_image: image id -> its annotations.
        class_index: category id -> rank of the id.
    """

    path: str
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    of_image: dict[Any, list[dict[str, Any]]]
    class_index: dict[int, int]

    @classmethod
    def read(cls, path: str) -> "AnnotationJson":
        """Read a file with ``images``, ``annotations`` and ``categories``.

        Raises:
            InputError: there is no such file, or it is not in that format; the message names the entry and the key.
        """
        content = _read(path)
        for key, what in _LISTS.items():
            problem = find_wrong_row(content[key], what)
            if problem:
                raise InputError(f"{path}: {problem}")
        images = _by_id(path, content["images"], "image")
        categories = _by_id(path, content["categories"], "category")
        if not categories:
            raise InputError(f"{path} lists no categories, so its labels have no names; add them")
        of_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
        _by_id(path, content["annotations"], "annotation")
        orphans = 0
        for annotation in content["annotations"]:
            rows = of_image.get(annotation.get("image_id"))
            if rows is None:
                orphans += 1
            else:
                rows.append(annotation)
        if orphans:
            logger.warning("%s: %d annotations belong to no image of the file and are left out", path, orphans)
        return cls(path, images, categories, of_image, {row["id"]: rank for rank, row in enumerate(categories)})

    def error(self, image: dict[str, Any], annotation: dict[str, Any] | None, problem: str) -> InputError:
        """The error to raise for an image or one of its annotations."""
        where = f"image {image['id']}"
        return InputError(f"{self.path}: {where if annotation is None else _of(annotation, where)}: {problem}")

    def size(self, image: dict[str, Any]) -> dict[str, int]:
        """``height`` and ``width`` of an image."""
        for key in ("height", "width"):
            if not isinstance(image.get(key), int) or image[key] <= 0:
                raise self.error(image, None, f"'{key}' is {image.get(key)!r}, expected a positive integer")
        return {"height": image["height"], "width": image["width"]}

    def class_indices(self, image: dict[str, Any], key: str) -> list[int]:
        """Class indices of the category ids that an image lists under ``key``; [] where the key is missing."""
        numbers = image.get(key, [])
        unknown = [number for number in numbers if number not in self.class_index]
        if unknown:
            raise self.error(
                image, None, f"{key} holds {unknown[0]!r}, which is none of the {len(self.categories)} categories"
            )
        return [self.class_index[number] for number in numbers]

    def annotation_index(self, image: dict[str, Any], annotation: dict[str, Any]) -> int:
        """Class index of an annotation, after a look at the fields that every annotation must have."""
        for key in ("bbox", "category_id"):
            if key not in annotation:
                raise self.error(image, annotation, f"'{key}' is missing")
        if annotation["category_id"] not in self.class_index:
            problem = f"category_id {annotation['category_id']!r} is none of the {len(self.categories)} categories"
            raise self.error(image, annotation, problem)
        box_problem = check_box(annotation["bbox"])
        if box_problem:
            raise self.error(image, annotation, box_problem)
        return self.class_index[annotation["category_id"]]

    def describe(self, dataset_name: str) -> None:
        """Complete the metadata of a data set: class names and the class index of each category id.

        Raises:
            InputError: the data set is registered with another number of classes.
        """
        metadata = MetadataCatalog.get(dataset_name)
        names = metadata.get("thing_classes")
        if names is None:
            metadata.thing_classes = [row.get("name", str(row["id"])) for row in self.categories]
        elif len(names) != len(self.categories):
            raise InputError(
                f"{self.path} has {len(self.categories)} categories, but {dataset_name} is registered with "
                f"{len(names)} classes; prepare the file again, or register it under another name"
            )
        if metadata.get("thing_dataset_id_to_contiguous_id") is None:
            metadata.thing_dataset_id_to_contiguous_id = dict(self.class_index)


def not_found(path: str) -> InputError:
    """The error to raise where an annotation file is missing."""
    return InputError(
        f"{path} not found; DETECTRON2_DATASETS names the data root, and datasets/README.md says how to make the file"
    )


def check_box(box: Any) -> str | None:
    """What is wrong with an ``[x, y, width, height]``, if anything. A side of zero is not wrong."""
    if not isinstance(box, Sequence) or len(box) != 4:
        return f"'bbox' is {box!r}, expected [x, y, width, height]"
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        return f"'bbox' is {box!r}, expected four finite numbers"
    if box[2] < 0 or box[3] < 0:
        return f"'bbox' is {box!r}, whose width or height is negative; expected [x, y, width, height]"
    return None


def is_polygon(polygon: Any) -> bool:
    """Whether it is a flat list of at least three (x, y)."""
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6


def _read(path: str) -> dict[str, list[dict[str, Any]]]:
    try:
        with PathManager.open(path, "r", encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise not_found(path) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON: {error}") from error
    for key in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} has no list '{key}'; expected a COCO-style annotation file")
    return content


def _by_id(path: str, rows: list[Any], what: str) -> list[dict[str, Any]]:
    seen = set()
    for row in rows:
        if row["id"] in seen:
            raise InputError(f"{path}: {what} id {row['id']} is not unique")
        seen.add(row["id"])
    return sorted(rows, key=lambda row: row["id"])


def _of(annotation: dict[str, Any], where: str) -> str:
    return f"annotation {annotation['id']} of {where}"
