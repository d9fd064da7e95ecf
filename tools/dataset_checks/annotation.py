"""Checks of one annotation: its class, its box, its mask."""

import math
from collections.abc import Container
from typing import Any

import numpy as np
from dataset_checks.report import Report


class AnnotationChecker:
    """Checks annotations with boxes as [x, y, width, height].

    Args:
        report: where problems go.
        category_ids: the known ones, or class indices.
        needs_polygons: every annotation must have polygons, and good ones only (LVIS).
    """

    def __init__(self, report: Report, category_ids: Container[int], needs_polygons: bool = False) -> None:
        self.report = report
        self.category_ids = category_ids
        self.needs_polygons = needs_polygons

    def check(self, annotation: dict, size: tuple[int, int] | None, where: str) -> bool:
        """Whether it is good to train on; ``size`` is the image's (height, width), None if unknown."""
        before = self.report.count("error")
        for key in ("bbox", "category_id"):
            if key not in annotation:
                self.report.error("annotation without a field", f"{where}: '{key}' is missing")
        if "category_id" in annotation and not _is_known(annotation["category_id"], self.category_ids):
            self.report.error("unknown category", f"{where}: category_id {annotation['category_id']!r} does not exist")
        if annotation.get("iscrowd", 0) not in (0, 1):
            self.report.error("bad iscrowd", f"{where}: iscrowd is {annotation['iscrowd']!r}, expected 0 or 1")
        if annotation.get("ignore", 0) != 0:
            self.report.error("ignored annotation", f"{where}: 'ignore' is {annotation['ignore']!r}; use iscrowd")
        if "bbox" in annotation:
            self._check_box(annotation["bbox"], size, where)
        self._check_segmentation(annotation, size, where)
        return self.report.count("error") == before and annotation.get("iscrowd", 0) == 0

    def _check_box(self, box: Any, size: tuple[int, int] | None, where: str) -> None:
        if not isinstance(box, (list, tuple, np.ndarray)) or len(box) != 4 or not all(map(_is_number, box)):
            self.report.error("bad box", f"{where}: bbox is {box!r}, expected [x, y, width, height]")
            return
        x, y, width, height = map(float, box)
        shown = f"bbox [x, y, width, height] is [{x:g}, {y:g}, {width:g}, {height:g}]"
        if not all(map(math.isfinite, (x, y, width, height))):
            self.report.error("box that is not finite", f"{where}: {shown}")
        elif width < 0 or height < 0:
            self.report.error("box with a negative side", f"{where}: {shown}")
        elif width == 0 or height == 0:
            self.report.warning("box without area", f"{where}: {shown}; it is left out of training")
        elif size is not None and (x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0):
            self.report.error("box outside of its image", f"{where}: {shown}, the image {size[1]}x{size[0]}")
        elif size is not None and (x < -1 or y < -1 or x + width > size[1] + 1 or y + height > size[0] + 1):
            self.report.warning(
                "box that reaches out of its image", f"{where}: {shown}, the image {size[1]}x{size[0]}; it is clipped"
            )

    def _check_segmentation(self, annotation: dict, size: tuple[int, int] | None, where: str) -> None:
        segmentation = annotation.get("segmentation")
        if self.needs_polygons and not (isinstance(segmentation, list) and segmentation):
            self.report.error("no polygons", f"{where}: segmentation is {_shorten(segmentation)}, expected polygons")
        elif isinstance(segmentation, list) and segmentation:
            self._check_polygons(segmentation, size, where)
        elif isinstance(segmentation, dict):
            self._check_rle(segmentation, size, where)
        elif segmentation is not None and segmentation != []:
            self.report.error(
                "bad segmentation", f"{where}: segmentation is {_shorten(segmentation)}, expected polygons or RLE"
            )

    def _check_polygons(self, polygons: list, size: tuple[int, int] | None, where: str) -> None:
        good = 0
        for number, polygon in enumerate(polygons):
            what = f"{where}: polygon {number}"
            try:
                points = np.asarray(polygon, dtype=np.float64)
            except (TypeError, ValueError):
                points = np.empty((0, 0))
            if points.ndim != 1 or len(points) % 2 or len(points) < 6:
                message = f"{what} is {_shorten(polygon)}, expected a flat list of at least three x, y"
                add = self.report.error if self.needs_polygons else self.report.warning
                add("bad polygon", message if self.needs_polygons else f"{message}; it is dropped")
            elif not np.isfinite(points).all():
                self.report.error("polygon that is not finite", f"{what} is {_shorten(polygon)}")
            else:
                good += self._check_good_polygon(points.reshape(-1, 2), size, what)
        if not good:
            self.report.warning("no usable polygon", f"{where}: none of {len(polygons)} polygons can be used")

    def _check_good_polygon(self, points: np.ndarray, size: tuple[int, int] | None, what: str) -> bool:
        x, y = points.T
        area = abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2
        if area == 0:
            self.report.warning("polygon without area", f"{what} has the area 0")
            return False
        if size is not None and (x.min() >= size[1] or y.min() >= size[0] or x.max() <= 0 or y.max() <= 0):
            self.report.error("polygon outside of its image", f"{what} lies outside of the image {size[1]}x{size[0]}")
            return False
        return True

    def _check_rle(self, rle: dict, size: tuple[int, int] | None, where: str) -> None:
        missing = [key for key in ("size", "counts") if key not in rle]
        if missing:
            self.report.error("bad RLE", f"{where}: the RLE has no '{missing[0]}'")
            return
        if size is not None and list(rle["size"]) != list(size):
            self.report.error(
                "RLE of a wrong size",
                f"{where}: the RLE has the size {list(rle['size'])}, its image {list(size)} (height, width)",
            )
            return
        counts = rle["counts"] if isinstance(rle["counts"], list) else _decode_counts(rle["counts"])
        expected = int(rle["size"][0]) * int(rle["size"][1])
        if counts is None or not all(map(_is_number, counts)) or sum(counts) != expected or min(counts) < 0:
            total = "text that is no RLE" if counts is None else f"runs over {sum(counts)} pixels"
            self.report.error("bad RLE", f"{where}: the counts are {total}, expected runs over {expected} pixels")
        elif sum(counts[1::2]) == 0:
            self.report.warning("empty RLE", f"{where}: the mask has no pixel")


def _decode_counts(counts: str | bytes) -> list[int] | None:
    """Run lengths of COCO's compressed RLE; None if it is not well-formed.

    Six bits per character from "0": five of the number, lowest first, and one that says whether more follow. From the
    fourth number on, it is the difference to the one two before. (pycocotools does not check what it decodes.)
    """
    data = counts.encode("ascii", errors="replace") if isinstance(counts, str) else counts
    if not isinstance(data, bytes):
        return None
    runs: list[int] = []
    value = shift = 0
    for character in data:
        bits = character - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if runs and shift == 0 else None


def _is_known(category: Any, known: Container[int]) -> bool:
    try:
        return category in known
    except TypeError:  # not hashable
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
