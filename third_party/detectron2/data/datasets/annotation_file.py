"""Reading COCO-style json files, with one clear error for whatever is wrong in them."""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import mul
from typing import Any

from detectron2.utils.file_io import PathManager

__all__ = ["AnnotationError", "AnnotationFile", "check_box", "check_rle", "is_polygon", "polygon_area"]

logger = logging.getLogger(__name__)

_LISTS = ("images", "annotations", "categories")


class AnnotationError(ValueError, KeyError, AssertionError):
    """An annotation file does not keep to its format.

    The real detectron2 raises a KeyError, an AssertionError or a ValueError, depending on what is wrong.
    """

    def __str__(self) -> str:  # a KeyError would show the repr
        return str(self.args[0])


class AnnotationFile:
    """A COCO-style json: images with their annotations, and categories.

    Args:
        file_name: the json.
    Attributes:
        images: by ascending id.
        categories: by ascending id; empty if the file lists none.
    Raises:
        AnnotationError: the file is no such json, an id is missing or not unique.
    """

    def __init__(self, file_name: str) -> None:
        self.file_name = str(file_name)
        content = self._read()
        for key in _LISTS:
            if not isinstance(content.get(key, []), list):
                raise AnnotationError(f"{self.file_name}: '{key}' is a {type(content[key]).__name__}, expected a list")
        if "images" not in content:
            raise AnnotationError(f"{self.file_name} has no 'images'; expected a COCO-style annotation file")
        self.images: list[dict] = self._sorted("images", "image", content["images"])
        self.categories: list[dict] = self._sorted("categories", "category", content.get("categories", []))
        self._by_image: dict[Any, list[dict]] = {image["id"]: [] for image in self.images}
        self._distribute(content.get("annotations", []))

    def annotations(self) -> Iterator[tuple[dict, list[dict]]]:
        """(image, its annotations) by ascending image id."""
        for image in self.images:
            yield image, self._by_image[image["id"]]

    def error(self, image: dict, annotation: dict | None, message: str) -> AnnotationError:
        """The error to raise for an image or one of its annotations."""
        where = f"image {image.get('id')}"
        if annotation is not None:
            where = f"annotation {annotation.get('id', '(without id)')} of {where}"
        return AnnotationError(f"{self.file_name}: {where}: {message}")

    def _read(self) -> dict:
        with PathManager.open(self.file_name, "r", encoding="utf-8") as file:
            try:
                content = json.load(file)
            except ValueError as error:
                raise AnnotationError(f"{self.file_name} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise AnnotationError(
                f"{self.file_name} holds a {type(content).__name__}, expected an object with "
                f"'images', 'annotations' and 'categories'"
            )
        return content

    def _sorted(self, key: str, what: str, rows: list[dict]) -> list[dict]:
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or "id" not in row:
                raise AnnotationError(f"{self.file_name}: {what} number {number} in '{key}' has no 'id'")
        repeated = [value for value, count in Counter(row["id"] for row in rows).items() if count > 1]
        if repeated:
            raise AnnotationError(f"{self.file_name}: {what} id {repeated[0]} is not unique in '{key}'")
        return sorted(rows, key=lambda row: row["id"])

    def _distribute(self, annotations: list[dict]) -> None:
        """Sort the annotations by image; those of unknown images are left out with a warning."""
        seen: set[Any] = set()
        orphans = []
        for number, annotation in enumerate(annotations):
            if not isinstance(annotation, dict) or "image_id" not in annotation:
                name = annotation.get("id", f"number {number}") if isinstance(annotation, dict) else f"number {number}"
                raise AnnotationError(f"{self.file_name}: annotation {name} has no 'image_id'")
            if "id" in annotation:
                # One list of annotations that share ids is published: the old "minival" of COCO.
                if annotation["id"] in seen and "minival" not in self.file_name:
                    raise AnnotationError(f"{self.file_name}: annotation id {annotation['id']} is not unique")
                seen.add(annotation["id"])
            of_image = self._by_image.get(annotation["image_id"])
            if of_image is None:
                orphans.append(annotation)
            else:
                of_image.append(annotation)
        if orphans:
            first = orphans[0]
            logger.warning(
                "%s: %d of %d annotations belong to no image of the file and are left out, first annotation %s of "
                "image %s",
                self.file_name,
                len(orphans),
                len(annotations),
                first.get("id"),
                first["image_id"],
            )


def check_box(box: Any) -> str | None:
    """What is wrong with an ``[x, y, width, height]``, if anything. A side of zero is not wrong."""
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return f"'bbox' is {box!r}, expected [x, y, width, height]"
    try:
        finite = math.isfinite(sum(box))
    except TypeError:
        return f"'bbox' is {box!r}, expected four numbers"
    if not finite:
        return f"'bbox' is {box}, expected finite numbers"
    if box[2] < 0 or box[3] < 0:
        return f"'bbox' is {box}, whose width or height is negative; expected [x, y, width, height]"
    return None


def check_rle(rle: dict, height: int, width: int) -> str | None:
    """What is wrong with a run-length mask of an image of this size, if anything."""
    missing = [key for key in ("size", "counts") if key not in rle]
    if missing:
        return f"the RLE in 'segmentation' has no '{missing[0]}'"
    if list(rle["size"]) != [height, width]:
        return f"the RLE in 'segmentation' has the size {rle['size']}, its image [{height}, {width}] (height, width)"
    if isinstance(rle["counts"], list) and sum(rle["counts"]) != height * width:
        return (
            f"the counts of the RLE in 'segmentation' add up to {sum(rle['counts'])} pixels, "
            f"expected height * width = {height * width}"
        )
    return None


def is_polygon(polygon: Any) -> bool:
    """Whether it is a flat list of at least three (x, y)."""
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6


def polygon_area(polygon: Sequence[float]) -> float:
    """Area of a flat list of (x, y) in pixels."""
    xs, ys = polygon[0::2], polygon[1::2]
    twice = sum(map(mul, xs, ys[1:])) + xs[-1] * ys[0] - sum(map(mul, xs[1:], ys)) - xs[0] * ys[-1]
    return abs(twice) / 2
