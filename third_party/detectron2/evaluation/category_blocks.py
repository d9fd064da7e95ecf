"""Average precision by faster-coco-eval, a few categories at a time.

Precision and recall of a category depend on its own annotations and detections alone. Evaluating blocks of categories,
and of each block only the images that hold something, gives the numbers of evaluating everything at once; memory and
time then follow the number of annotations and detections instead of images times categories.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from detectron2.data.datasets.annotation_file import is_outline
from detectron2.evaluation.ground_truth import GroundTruth
from detectron2.evaluation.prediction_files import Detections

__all__ = ["AveragePrecision", "evaluate_by_category"]

# Images times categories of a block. A block costs a fixed time, and each such pair a little.
_MAX_PAIRS = 1024
_NO_MASK = {"size": [1, 1], "counts": "1"}  # in place of a mask that is compared with none; its area is known


@dataclass
class AveragePrecision:
    """Precision and recall of every category, and what they were computed for.

    Attributes:
        params: the evaluator's parameters: ``iouThrs``, ``recThrs``, ``areaRngLbl``, ``maxDets``, ``catIds``, …
        eval: "precision" (IoU thresholds, recall thresholds, categories, area ranges, detection limits) and "recall"
            (without recall thresholds) in [0, 1]; -1 where there is no ground truth.
        stats: the 12 numbers of COCO's summary; None until ``summarize``.
    """

    params: Any
    eval: dict[str, Any]
    stats: np.ndarray | None = None

    def mean(
        self,
        kind: str = "precision",
        *,
        iou: float | None = None,
        area: str = "all",
        limit: int = -1,
        categories: Sequence[int] | None = None,
    ) -> float:
        """Mean over categories, thresholds and recall levels; -1 where there is no ground truth.

        Args:
            kind: "precision" or "recall".
            iou: one IoU threshold instead of all.
            limit: index into the sorted limits of detections per image.
            categories: indices of categories instead of all.
        """
        values = self.eval[kind][..., self.params.areaRngLbl.index(area), limit]
        if iou is not None:
            values = values[np.isclose(self.params.iouThrs, iou)]
        if categories is not None:
            values = values[..., list(categories)]
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0

    def summarize(self) -> np.ndarray:
        """COCO's 12 numbers: AP, AP50, AP75, APs, APm, APl, then recalls. AP is that of the last limit."""
        areas = ("small", "medium", "large")
        stats = [self.mean(limit=2), self.mean(iou=0.5, limit=2), self.mean(iou=0.75, limit=2)]
        stats += [self.mean(area=area, limit=2) for area in areas]
        stats += [self.mean("recall", limit=limit) for limit in range(3)]
        stats += [self.mean("recall", area=area, limit=2) for area in areas]
        self.stats = np.array(stats)
        return self.stats


def evaluate_by_category(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    *,
    max_dets: Sequence[int],
    max_dets_per_image: int | None = None,
    image_ids: Sequence[int | str] | None = None,
) -> AveragePrecision:
    """Match detections to annotations by IoU, and compute precision and recall per category.

    Args:
        detections: ``category`` holds category ids of the annotations.
        iou_type: "bbox", or "segm" to compare masks; then areas of detections are those of their masks.
        max_dets: limits of detections per image and category, the best ones; sorted.
        max_dets_per_image: limit per image over all categories, applied first; None for no limit.
        image_ids: the images to evaluate on, by default all of the ground truth.
    Raises:
        ValueError: detections for images that the ground truth does not have, or without a mask for "segm".
    """
    rows = _rows_to_evaluate(ground_truth, detections, max_dets_per_image)
    if image_ids is not None:
        chosen = set(ground_truth.index_of(image_ids).tolist())
        rows.keep(np.isin(rows.image, list(chosen)))
    else:
        chosen = None
    params = _new_params(iou_type, sorted(max_dets), ground_truth)
    shape = (len(params.iouThrs), len(params.catIds), len(params.areaRng), len(params.maxDets))
    precision = np.full((shape[0], len(params.recThrs), *shape[1:]), -1.0)
    recall = np.full(shape, -1.0)
    for block in _blocks(ground_truth, rows, chosen):
        result = _evaluate_block(ground_truth, detections, block, params)
        columns = [category.column for category in block]
        precision[:, :, columns] = result["precision"]
        recall[:, columns] = result["recall"]
    counts = list(precision.shape)
    return AveragePrecision(params, {"params": params, "counts": counts, "precision": precision, "recall": recall})


class _Rows:
    """Detections that count, as parallel arrays: row in ``Detections``, image index, category id."""

    def __init__(self, row: np.ndarray, image: np.ndarray, category: np.ndarray) -> None:
        self.row, self.image, self.category = row, image, category

    def keep(self, which: np.ndarray) -> None:
        self.row, self.image, self.category = self.row[which], self.image[which], self.category[which]


def _rows_to_evaluate(ground_truth: GroundTruth, detections: Detections, max_dets_per_image: int | None) -> _Rows:
    """The detections within the limit per image, by category, then image, then order of processing."""
    image = ground_truth.index_of(detections.image_ids)[detections.image] if len(detections) else detections.image
    rows = _Rows(np.arange(len(detections)), image, detections.category)
    if max_dets_per_image is not None:
        by_score = np.lexsort((-detections.score, image))
        first = np.searchsorted(image[by_score], image[by_score])
        rank = np.arange(len(by_score)) - first  # of a detection within its image
        # Back in the order of processing, which decides between equal scores.
        rows.keep(np.sort(by_score[rank < max_dets_per_image]))
    rows.keep(np.lexsort((rows.image, rows.category)))
    return rows


def _new_params(iou_type: str, max_dets: list[int], ground_truth: GroundTruth) -> Any:
    params = COCOeval_faster(iouType=iou_type).params
    params.maxDets = max_dets
    params.imgIds = list(ground_truth.image_ids)
    params.catIds = list(ground_truth.category_ids)
    return params


@dataclass
class _Category:
    """What is evaluated of one category: annotations and detections of the chosen images."""

    id: int
    column: int  # its place in the results
    annotations: list[tuple[int, dict[str, Any]]]
    rows: np.ndarray
    images: np.ndarray  # of the rows


def _blocks(ground_truth: GroundTruth, rows: _Rows, chosen: set[int] | None) -> Iterator[list[_Category]]:
    """Neighbouring categories with annotations, as many as make up a block."""
    block: list[_Category] = []
    images: set[int] = set()
    for column, category_id in enumerate(ground_truth.category_ids):
        annotations = ground_truth.annotations(category_id)
        if chosen is not None:
            annotations = [(image, annotation) for image, annotation in annotations if image in chosen]
        if not annotations:  # neither precision nor recall is defined, whatever was detected
            continue
        start, stop = np.searchsorted(rows.category, [category_id, category_id + 1])
        judged = ground_truth.judges(category_id, rows.image[start:stop])
        category = _Category(
            category_id, column, annotations, rows.row[start:stop][judged], rows.image[start:stop][judged]
        )
        own_images = {image for image, _ in annotations}.union(category.images.tolist())
        if block and len(images | own_images) * (len(block) + 1) > _MAX_PAIRS:
            yield block
            block, images = [], set()
        block.append(category)
        images |= own_images
    if block:
        yield block


def _evaluate_block(
    ground_truth: GroundTruth, detections: Detections, block: list[_Category], params: Any
) -> dict[str, np.ndarray]:
    masks = params.iouType == "segm"
    annotations = [
        _annotation(image, annotation, ground_truth, masks)
        for category in block
        for image, annotation in category.annotations
    ]
    results = [item for category in block for item in _results(category, detections, masks)]
    used = sorted({item["image_id"] for item in annotations + results})
    category_ids = frozenset(category.id for category in block)
    images = [_image(image, category_ids, ground_truth) for image in used]
    categories = [{"id": category.id, "name": str(category.id), "frequency": "f"} for category in block]
    evaluation = COCOeval_faster(
        _index(images, categories, annotations),
        _index(images, categories, results),
        params.iouType,
        lvis_style=ground_truth.federated,
        print_function=_ignore,
    )
    evaluation.params.maxDets = params.maxDets
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _ignore(*args: object) -> None:
    pass


def _index(images: list[dict], categories: list[dict], annotations: list[dict]) -> COCO:
    return COCO({"images": images, "categories": categories, "annotations": annotations}, print_function=_ignore)


def _image(image: int, category_ids: frozenset[int], ground_truth: GroundTruth) -> dict[str, Any]:
    height, width = ground_truth.sizes[image] or (0, 0)  # only masks need it
    record: dict[str, Any] = {"id": image, "height": height, "width": width}
    if ground_truth.federated:
        # Detections that do not count have been left out already: of these, all do.
        record["neg_category_ids"] = category_ids
        record["not_exhaustive_category_ids"] = ground_truth.not_exhaustive[image]
    return record


def _annotation(image: int, annotation: dict[str, Any], ground_truth: GroundTruth, masks: bool) -> dict[str, Any]:
    """A copy with what is needed: the evaluator writes into it."""
    item = {
        "id": annotation["id"],
        "image_id": image,
        "category_id": annotation["category_id"],
        "bbox": annotation["bbox"],
        "area": annotation["area"],
        "iscrowd": 0 if ground_truth.federated else int(annotation.get("iscrowd", 0)),
    }
    if ground_truth.federated and annotation.get("ignore"):
        item["area"] = -1.0  # outside of every range, which means the same; LVIS has no crowds
    if masks:
        if not annotation.get("segmentation"):
            raise ValueError(
                f"{ground_truth.name}: annotation {annotation['id']} has no segmentation to compare masks with; "
                f"evaluate with tasks=('bbox',)"
            )
        polygons = annotation["segmentation"]
        if isinstance(polygons, list) and not all(map(_is_usable_polygon, polygons)):
            raise ValueError(
                f"{ground_truth.name}: the segmentation of annotation {annotation['id']} holds something else than "
                "polygons [x, y, x, y, x, y, ...]; remove it from the file"
            )
        if ground_truth.sizes[image] is None:
            raise ValueError(f"{ground_truth.name}: image {annotation['image_id']} has no height and width")
        item["segmentation"] = annotation["segmentation"]
    return item


def _is_usable_polygon(polygon: Any) -> bool:
    # The compiled code takes four numbers for a box, and stops at anything that is no list of numbers or far away.
    return isinstance(polygon, list) and len(polygon) >= 4 and is_outline(polygon)


def _results(category: _Category, detections: Detections, masks: bool) -> list[dict[str, Any]]:
    rows = category.rows
    boxes = detections.box[rows]
    areas = detections.mask_area[rows] if masks else boxes[:, 2] * boxes[:, 3]
    columns = zip(
        rows.tolist(),
        category.images.tolist(),
        boxes.tolist(),
        detections.score[rows].tolist(),
        areas.tolist(),
        strict=True,
    )
    items = [
        {
            "id": row + 1,  # 0 would mean "unmatched"
            "image_id": image,
            "category_id": category.id,
            "bbox": box,
            "score": score,
            "area": area,
            "iscrowd": 0,
        }
        for row, image, box, score, area in columns
    ]
    if masks:
        if np.isnan(areas).any():
            raise ValueError(f"a detection of category {category.id} has no mask; evaluate with tasks=('bbox',)")
        annotated = {image for image, _ in category.annotations}
        for item in items:
            compared = item["image_id"] in annotated
            item["segmentation"] = detections.segmentation(item["id"] - 1) if compared else _NO_MASK
    return items
