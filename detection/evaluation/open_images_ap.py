"""Average precision at IoU 0.5 under the rules of the Open Images Challenge.

Labels are verified per image, so detections of a class that an image says nothing about do not count; one annotation
may stand for a group of objects; and a detection also counts for every ancestor of its class in a hierarchy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from prompt_pretrain.errors import InputError

__all__ = [
    "OpenImagesDetections",
    "OpenImagesGroundTruth",
    "OpenImagesResult",
    "class_ancestors",
    "evaluate_detections",
]


@dataclass(frozen=True)
class OpenImagesDetections:
    """D detections of a data set, in the order in which they were made.

    Attributes:
        image: (D,) rows of ``OpenImagesGroundTruth.image_ids``.
        label: (D,) class indices.
        box: (D, 4) x, y, width, height in pixels.
        score: (D,)
        masks: D run-length encodings, or None.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    masks: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "OpenImagesDetections":
        """Some of them, in the order of ``rows`` (indices or flags)."""
        masks = None if self.masks is None else self.masks[rows]
        return OpenImagesDetections(self.image[rows], self.label[rows], self.box[rows], self.score[rows], masks)


@dataclass(frozen=True)
class OpenImagesResult:
    """Results of C classes.

    Attributes:
        ap: (C,) in [0, 1]; -1 without ground truth.
        recall: (C,) in [0, 1]; -1 without ground truth.
        num_annotations: (C,) groups count once.
    """

    ap: np.ndarray
    recall: np.ndarray
    num_annotations: np.ndarray

    @property
    def mean_ap(self) -> float:
        """Mean over the classes with ground truth; -1 if there is none."""
        annotated = self.num_annotations > 0
        return float(self.ap[annotated].mean()) if annotated.any() else -1.0

    @property
    def instance_weighted_ap(self) -> float:
        """Mean over classes, each weighted by its number of annotations; -1 if there is none."""
        total = self.num_annotations.sum()
        return float((self.ap * self.num_annotations).sum() / total) if total else -1.0


class OpenImagesGroundTruth:
    """An Open Images json: a COCO-style json whose images list what was verified to be there or not.

    Args:
        content: with ``images`` (``pos_category_ids`` and ``neg_category_ids``), ``annotations`` (``iscrowd`` marks a
            group) and ``categories``.
        source: file name for errors.
    Attributes:
        image_ids: by ascending id.
        category_ids: by ascending id; the position is the class index.
    Raises:
        InputError: something is missing, or an annotated class is not among its image's positives.
    """

    def __init__(self, content: Mapping[str, Any], source: str = "ground truth") -> None:
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise InputError(f"{source} has no list '{key}'; expected a json in Open Images format")
        self.source = source
        self.categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in self.categories]
        self._class_of = {number: index for index, number in enumerate(self.category_ids)}
        self.image_ids = sorted(image["id"] for image in content["images"])
        self.row_of_image = {number: row for row, number in enumerate(self.image_ids)}
        positive = np.zeros((len(self.image_ids), self.num_classes), dtype=bool)
        self.verified = np.zeros_like(positive)  # (images, C), by person: present or absent
        self.image_sizes: list[tuple[int, int]] = [(0, 0)] * len(self.image_ids)
        for image in content["images"]:
            row = self.row_of_image[image["id"]]
            self.image_sizes[row] = (image.get("height", 0), image.get("width", 0))
            positive[row, self._listed(image, "pos_category_ids")] = True
            self.verified[row, self._listed(image, "neg_category_ids")] = True
        self.verified |= positive
        self._read_annotations(content["annotations"], positive)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    def encoded_mask(self, row: int) -> dict[str, Any]:
        """Run-length encoding of an annotation's mask.

        Raises:
            InputError: it has none.
        """
        mask = self._segmentations[row]
        if not mask:
            raise InputError(f"{self.source}: annotation {self._ids[row]} has no 'segmentation'; evaluate boxes only")
        height, width = self.image_sizes[self.image[row]]
        if isinstance(mask, list):
            return mask_util.merge(mask_util.frPyObjects(mask, height, width))
        return mask_util.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask

    def _listed(self, image: Mapping[str, Any], key: str) -> list[int]:
        if key not in image:
            raise InputError(
                f"{self.source}: image {image['id']} has no '{key}'; expected a json in Open Images format"
            )
        unknown = [number for number in image[key] if number not in self._class_of]
        if unknown:
            raise InputError(f"{self.source}: {key} of image {image['id']} holds {unknown[0]}, which is no category")
        return [self._class_of[number] for number in image[key]]

    def _read_annotations(self, annotations: Sequence[Mapping[str, Any]], positive: np.ndarray) -> None:
        kept = [annotation for annotation in annotations if annotation["image_id"] in self.row_of_image]
        for annotation in kept:
            if annotation["category_id"] not in self._class_of:
                raise InputError(
                    f"{self.source}: annotation {annotation.get('id')} has the unknown category "
                    f"{annotation['category_id']}"
                )
        self.image = np.array([self.row_of_image[annotation["image_id"]] for annotation in kept], dtype=np.int64)
        self.label = np.array([self._class_of[annotation["category_id"]] for annotation in kept], dtype=np.int64)
        self.box = np.array([annotation["bbox"] for annotation in kept], dtype=np.float64).reshape(-1, 4)
        self.is_group = np.array([bool(annotation.get("iscrowd", 0)) for annotation in kept], dtype=bool)
        self._segmentations = [annotation.get("segmentation") for annotation in kept]
        self._ids = [annotation.get("id") for annotation in kept]
        contradicting = np.flatnonzero(~positive[self.image, self.label])
        if len(contradicting):
            row = contradicting[0]
            category = self.category_ids[self.label[row]]
            raise InputError(
                f"{self.source}: annotation {self._ids[row]} is of category {category}, which "
                f"is not in pos_category_ids of its image {self.image_ids[self.image[row]]}; add it there"
            )


def class_ancestors(hierarchy: Mapping[str, Any], names: Sequence[str]) -> list[list[int]]:
    """For each class the indices of all its ancestors, itself not included.

    Args:
        hierarchy: nodes ``{"LabelName": name, "Subcategory": [nodes]}``; names that are no classes are passed through.
        names: of the classes, in the form that the hierarchy uses (Freebase ids).
    """
    index_of = {name: index for index, name in enumerate(names)}
    found: list[set[int]] = [set() for _ in names]
    stack: list[tuple[Mapping[str, Any], frozenset[int]]] = [(hierarchy, frozenset())]
    while stack:
        node, above = stack.pop()
        own = index_of.get(node.get("LabelName", ""))
        if own is not None:
            found[own] |= above - {own}
            above = above | {own}
        stack.extend((child, above) for child in node.get("Subcategory", ()))
    return [sorted(classes) for classes in found]


def evaluate_detections(
    ground_truth: OpenImagesGroundTruth,
    detections: OpenImagesDetections,
    *,
    ancestors: Sequence[Sequence[int]] | None = None,
    with_masks: bool = False,
    max_detections: int = 300,
    iou_threshold: float = 0.5,
) -> OpenImagesResult:
    """Average precision and recall per class.

    Args:
        ancestors: of :func:`class_ancestors`: also count each detection for these.
        with_masks: overlaps of masks instead of boxes.
        max_detections: the best ones of each image count.
    """
    rows, label = _best_per_image(detections, max_detections), detections.label
    if ancestors is None:
        label = label[rows]
    else:
        rows, label = _with_ancestors(rows, label, ancestors)
    # A few in a hundred are of a class that was verified: what costs memory comes after this.
    counted = ground_truth.verified[detections.image[rows], label]
    kept = replace(detections.take(rows[counted]), label=label[counted])
    num_classes = ground_truth.num_classes
    # One key per pair of image and class: only what shares a key can match.
    keys = kept.image * num_classes + kept.label
    order = np.lexsort((-kept.score, keys))  # stable: ties stay in the order of detection
    kept, keys = kept.take(order), keys[order]
    label, score, correct = _match(ground_truth, kept, keys, with_masks, iou_threshold)
    num_annotations = np.bincount(ground_truth.label, minlength=num_classes)
    ap, recall = np.full(num_classes, -1.0), np.full(num_classes, -1.0)
    order = np.lexsort((-score, label))
    label, correct = label[order], correct[order]
    bounds = np.searchsorted(label, np.arange(num_classes + 1))
    for index in np.flatnonzero(num_annotations):
        hits = np.cumsum(correct[bounds[index] : bounds[index + 1]])
        recall[index] = hits[-1] / num_annotations[index] if len(hits) else 0.0
        ap[index] = _area_under_envelope(hits, num_annotations[index])
    return OpenImagesResult(ap, recall, num_annotations)


def _best_per_image(detections: OpenImagesDetections, limit: int) -> np.ndarray:
    """Rows of the best detections of each image, images and scores in order."""
    order = np.lexsort((-detections.score, detections.image))
    image = detections.image[order]
    starts = np.searchsorted(image, image)  # first position of each one's image
    return order[np.arange(len(image)) - starts < limit]


def _with_ancestors(
    rows: np.ndarray, label: np.ndarray, ancestors: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows, each repeated for every class that it counts for, and these classes."""
    counts = np.array([1 + len(classes) for classes in ancestors], dtype=np.int64)
    flat = np.array([number for index, classes in enumerate(ancestors) for number in (index, *classes)], dtype=np.int64)
    own = label[rows]
    repeated, positions = _ranges((np.cumsum(counts) - counts)[own], counts[own])
    return rows[repeated], flat[positions]


def _match(
    ground_truth: OpenImagesGroundTruth,
    detections: OpenImagesDetections,
    keys: np.ndarray,
    with_masks: bool,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decide which detections are right. They are sorted by key and falling score.

    A detection looks at its best box only, and the first one to do so finds it. What finds no box but lies in a group
    is neither right nor wrong; the group is found once, with the highest score in it.

    Returns:
        (label, score, correct) of everything that counts.
    """
    gt_keys = ground_truth.image * ground_truth.num_classes + ground_truth.label
    gt_order = np.argsort(gt_keys, kind="stable")
    gt_keys = gt_keys[gt_order]
    starts = np.searchsorted(gt_keys, keys)
    rows, positions = _ranges(starts, np.searchsorted(gt_keys, keys, side="right") - starts)
    annotations = gt_order[positions]
    overlaps = _pair_overlaps(ground_truth, detections, rows, annotations, with_masks)
    in_group = ground_truth.is_group[annotations]

    count = len(keys)
    best, overlap = _best_of(rows[~in_group], annotations[~in_group], overlaps[~in_group], count)
    near = np.flatnonzero(overlap >= threshold)
    correct = np.zeros(count, dtype=bool)
    correct[near[np.unique(best[near], return_index=True)[1]]] = True

    group, overlap = _best_of(rows[in_group], annotations[in_group], overlaps[in_group], count)
    absorbed = ~correct & (overlap >= threshold)
    inside = np.flatnonzero(absorbed)
    found = inside[np.unique(group[inside], return_index=True)[1]]  # the first is the best of its group
    counted = ~absorbed
    counted[found] = correct[found] = True
    return detections.label[counted], detections.score[counted], correct[counted]


def _best_of(
    rows: np.ndarray, annotations: np.ndarray, overlaps: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per detection the annotation that overlaps most, the first of equal ones, and how much: (count,) each; -1."""
    best, best_overlap = np.full(count, -1, dtype=np.int64), np.full(count, -1.0)
    order = np.lexsort((-overlaps, rows))
    first = order[np.unique(rows[order], return_index=True)[1]]
    best[rows[first]], best_overlap[rows[first]] = annotations[first], overlaps[first]
    return best, best_overlap


def _pair_overlaps(
    ground_truth: OpenImagesGroundTruth,
    detections: OpenImagesDetections,
    rows: np.ndarray,
    annotations: np.ndarray,
    with_masks: bool,
) -> np.ndarray:
    """(P,) IoU of pairs of a detection and an annotation; for a group intersection over the detection's area."""
    if with_masks:
        return _mask_overlaps(ground_truth, detections, rows, annotations)
    one, other = detections.box[rows].astype(np.float64), ground_truth.box[annotations]
    top_left = np.maximum(one[:, :2], other[:, :2])
    bottom_right = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=1)
    own_area, other_area = one[:, 2:].prod(axis=1), other[:, 2:].prod(axis=1)
    whole = np.where(ground_truth.is_group[annotations], own_area, own_area + other_area - intersection)
    return np.divide(intersection, whole, out=np.zeros(len(whole)), where=whole > 0)


def _mask_overlaps(
    ground_truth: OpenImagesGroundTruth, detections: OpenImagesDetections, rows: np.ndarray, annotations: np.ndarray
) -> np.ndarray:
    if detections.masks is None:
        raise InputError("masks are to be evaluated, but there are none in the detections; set MODEL.MASK_ON to False")
    encoded = {row: ground_truth.encoded_mask(row) for row in np.unique(annotations)}
    overlaps = np.zeros(len(rows))
    for pair, (row, annotation) in enumerate(zip(rows, annotations, strict=True)):
        group = [int(ground_truth.is_group[annotation])]
        overlaps[pair] = mask_util.iou([detections.masks[row]], [encoded[annotation]], group)[0, 0]
    return overlaps


def _ranges(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and positions of the ranges ``start … start + count``, one after the other."""
    rows = np.repeat(np.arange(len(counts)), counts)
    offsets = np.cumsum(counts) - counts
    return rows, np.arange(len(rows)) - offsets[rows] + starts[rows]


def _area_under_envelope(hits: np.ndarray, num_annotations: int) -> float:
    """Area under precision over recall, the precision made falling from the right.

    Args:
        hits: (n,) number of right ones among the best 1, 2, …, n.
    """
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    gains = np.diff(hits, prepend=0) / num_annotations
    return math.fsum(gains * envelope)
