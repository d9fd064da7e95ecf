"""Reading COCO-style json files, with one clear error for whatever is wrong in them."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import mul
from typing import Any

from detectron2.utils.file_io import PathManager

__all__ = [
    "AnnotationError",
    "AnnotationFile",
    "are_numbers",
    "check_box",
    "check_rle",
    "is_outline",
    "is_polygon",
    "polygon_area",
]

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
            except (ValueError, RecursionError) as error:
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
            for name, (is_usable, expected) in _FIELDS.items():
                if name in row and not is_usable(row[name]):
                    raise AnnotationError(
                        f"{self.file_name}: {what} number {number} in '{key}': '{name}' is {_short(row[name])}, "
                        f"expected {expected}"
                    )
        if len({isinstance(row["id"], str) for row in rows}) > 1:
            raise AnnotationError(f"{self.file_name}: some ids in '{key}' are numbers and some are text")
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
            for key in ("id", "image_id", "category_id"):
                if key in annotation and not _is_id(annotation[key]):
                    raise AnnotationError(
                        f"{self.file_name}: annotation number {number}: '{key}' is {_short(annotation[key])}, expected "
                        "a whole number or text"
                    )
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
    if not all(isinstance(value, int | float) for value in box):
        return f"'bbox' is {_short(box)}, expected four numbers"
    if not are_numbers(box):
        return f"'bbox' is {box}, expected finite numbers"
    if box[2] < 0 or box[3] < 0:
        return f"'bbox' is {box}, whose width or height is negative; expected [x, y, width, height]"
    return None


def check_rle(rle: dict, height: int, width: int) -> str | None:
    """What is wrong with a run-length mask of an image of this size, if anything.

    pycocotools decodes masks in C and trusts them: runs that leave the image must not get there.
    """
    missing = [key for key in ("size", "counts") if key not in rle]
    if missing:
        return f"the RLE in 'segmentation' has no '{missing[0]}'"
    if rle["size"] not in ([height, width], (height, width)):
        return f"the RLE in 'segmentation' has the size {rle['size']}, its image [{height}, {width}] (height, width)"
    try:
        total = count_pixels(rle["counts"])
    except ValueError:
        return "the RLE in 'segmentation' holds 'counts' that are neither runs of pixels nor their compressed form"
    if total != height * width:
        return (
            f"the counts of the RLE in 'segmentation' add up to {total} pixels, "
            f"expected height * width = {height * width}"
        )
    return None


def count_pixels(counts: Any) -> int:
    """Pixels in all runs of a mask, listed or in COCO's compressed form.

    The compressed form writes a number in characters of 6 bits from "0" on: five bits of it, the lowest first, and
    whether more follow; the highest bit of its last character is the sign. From the fourth on, a number is the
    difference between a run and the run two before.

    Raises:
        ValueError: neither of these.
    """
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts):
            raise ValueError("runs are whole numbers")
        return sum(counts)
    if not isinstance(counts, str | bytes):
        raise ValueError("neither a list nor text")
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("latin1") if isinstance(counts, str) else counts:
        bits = code - ord("0")
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("not a character of runs")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        value += runs[-2] if len(runs) > 2 else 0
        if value < 0:
            raise ValueError("a run of negative length")
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("cut off")
    return sum(runs)


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers and no larger than coordinates can be."""
    try:
        return sum(map(abs, values)) <= _LARGEST  # False for NaN
    except (TypeError, OverflowError):
        return False


def is_outline(values: Sequence[Any]) -> bool:
    """Whether all are numbers x, y, x, y, ... of a polygon that can be drawn.

    The drawing takes memory for every pixel of the outline and counts in 32 bits: a corner far off ends the process.
    """
    try:
        if sum(map(abs, values)) <= _LONGEST_OUTLINE / 2:  # hence no edge, nor all together, is longer than the limit
            return True
        if not max(map(abs, values)) <= _LONGEST_OUTLINE:  # NaN as well
            return False
        xs, ys = values[0::2], values[1::2]
        steps = (max(abs(xs[i] - xs[i - 1]), abs(ys[i] - ys[i - 1])) for i in range(len(ys)))
        return sum(steps) <= _LONGEST_OUTLINE
    except (TypeError, OverflowError):
        return False


def is_polygon(polygon: Any) -> bool:
    """Whether it is a flat list of at least three (x, y)."""
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or _is_whole(value, 1 << 63)


def _is_whole(value: Any, limit: int) -> bool:
    """Some programs write whole numbers as 5.0."""
    return isinstance(value, int | float) and abs(value) < limit and value % 1 == 0


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_side(value: Any) -> bool:
    return _is_whole(value, _MAX_SIDE + 1) and value > 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_LARGEST = 1e12
_MAX_SIDE = 1 << 20
_LONGEST_OUTLINE = 1 << 21  # pixels
# Of images and categories, where they are given.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_id, "a whole number or text"),
    "name": (lambda value: isinstance(value, str), "text"),
    "file_name": (_is_path, "the name of a file"),
    "coco_url": (_is_path, "the address of a file"),
    "height": (_is_side, f"a number of pixels from 1 to {_MAX_SIDE:,}"),
    "width": (_is_side, f"a number of pixels from 1 to {_MAX_SIDE:,}"),
    "neg_category_ids": (lambda value: isinstance(value, list) and all(map(_is_id, value)), "a list of ids"),
    "not_exhaustive_category_ids": (lambda value: isinstance(value, list) and all(map(_is_id, value)), "a list of ids"),
}


def polygon_area(polygon: Sequence[float]) -> float:
    """Area of a flat list of (x, y) in pixels."""
    xs, ys = polygon[0::2], polygon[1::2]
    twice = sum(map(mul, xs, ys[1:])) + xs[-1] * ys[0] - sum(map(mul, xs[1:], ys)) - xs[0] * ys[-1]
    return abs(twice) / 2
