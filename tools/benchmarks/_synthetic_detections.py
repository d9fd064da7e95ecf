"""Made-up annotations and detections in COCO's and LVIS' formats, and the reference implementations to run on them."""

import contextlib
import io
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lvis import LVIS, LVISEval, LVISResults
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import third_party  # noqa: F401  makes detectron2 importable
from detectron2.structures import Boxes, Instances

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
LVIS_METRICS = (*COCO_METRICS, "APr", "APc", "APf")


@dataclass
class World:
    """Annotations (content of a json file) and detections, the latter as a model gives them, per image id."""

    annotations: dict[str, Any]
    detections: dict[int, Instances]


class SyntheticWorld:
    """Draws images with long-tailed classes; detections are noisy copies of annotations, or wrong."""

    def __init__(
        self,
        num_images: int,
        num_classes: int,
        detections_per_image: int,
        *,
        federated: bool,
        masks: bool = False,
        size: tuple[int, int] = (480, 640),
        seed: int = 0,
    ) -> None:
        """``federated``: LVIS' format, classes with frequencies and images with lists of classes; else COCO's."""
        self.num_images = num_images
        self.num_classes = num_classes
        self.detections_per_image = detections_per_image
        self.federated = federated
        self.masks = masks
        self.size = size
        self.random = np.random.default_rng(seed)
        weights = 1 / (1 + np.arange(num_classes)) ** 0.8
        self.class_weights = self.random.permutation(weights / weights.sum())

    def draw(self) -> World:
        """The whole world at once; ``draw_image`` goes image by image."""
        images, annotations, detections = [], [], {}
        for image_id in range(1, self.num_images + 1):
            image, own, instances = self.draw_image(image_id, first_annotation=len(annotations) + 1)
            images.append(image)
            annotations += own
            detections[image_id] = instances
        return World(self.assemble(images, annotations), detections)

    def assemble(self, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
        """The content of a json file."""
        categories = [{"id": c + 1, "name": f"class {c}"} for c in range(self.num_classes)]
        if self.federated:
            for category in categories:
                category["frequency"] = "rcf"[category["id"] % 3]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def draw_image(
        self, image_id: int, first_annotation: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]], Instances]:
        """An image's record, its annotations with ids from ``first_annotation`` on, its detections."""
        height, width = self.size
        count = int(self.random.integers(0, 15))
        boxes, classes = self._boxes(count), self._classes(count)
        annotations = [
            self._annotation(first_annotation + i, image_id, boxes[i], int(classes[i])) for i in range(count)
        ]
        image = {"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.jpg"}
        present = {a["category_id"] for a in annotations}
        if self.federated:
            image["coco_url"] = f"http://images/val2017/{image_id}.jpg"
            absent = set((self._classes(20) + 1).tolist()) - present
            image["neg_category_ids"] = sorted(absent)
            image["not_exhaustive_category_ids"] = [c for c in sorted(present) if self.random.random() < 0.1]
        return image, annotations, self._instances(boxes, classes)

    def _classes(self, count: int) -> np.ndarray:
        return self.random.choice(self.num_classes, count, p=self.class_weights)

    def _boxes(self, count: int) -> np.ndarray:
        """(count, 4) xyxy, sides spread evenly on a logarithmic scale."""
        height, width = self.size
        sides = np.exp(self.random.uniform(np.log(8), np.log(300), (count, 2)))
        start = self.random.uniform(0, 1, (count, 2)) * np.maximum([width, height] - sides, 0)
        return np.round(np.concatenate([start, np.minimum(start + sides, [width, height])], axis=1), 2)

    def _annotation(self, annotation_id: int, image_id: int, box: np.ndarray, label: int) -> dict[str, Any]:
        x0, y0, x1, y1 = box.tolist()
        annotation = {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0) * 0.7,
            "segmentation": [_octagon(box)],
        }
        if not self.federated:
            annotation["iscrowd"] = int(self.random.random() < 0.02)
            if annotation["iscrowd"]:
                polygons = mask_utils.frPyObjects(annotation["segmentation"], *self.size)
                annotation["segmentation"] = _as_text(mask_utils.merge(polygons))
        return annotation

    def _instances(self, gt_boxes: np.ndarray, gt_classes: np.ndarray) -> Instances:
        height, width = self.size
        count = self.detections_per_image
        copied = self.random.random(count) < 0.6 if len(gt_boxes) else np.zeros(count, dtype=bool)
        source = self.random.integers(0, max(len(gt_boxes), 1), count)
        boxes, classes = self._boxes(count), self._classes(count)
        noise = self.random.normal(0, 0.06, (count, 4)) * self.random.random((count, 1)) * 2
        if copied.any():
            chosen = gt_boxes[source[copied]]
            sides = np.tile(chosen[:, 2:] - chosen[:, :2], 2)
            boxes[copied] = chosen + noise[copied] * sides
            classes[copied] = np.where(
                self.random.random(copied.sum()) < 0.8, gt_classes[source[copied]], classes[copied]
            )
        boxes = np.clip(boxes, 0, [width, height, width, height])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        # Rounded, so that some scores are equal.
        scores = np.round(np.clip(self.random.beta(1, 4, count) + 0.4 * copied, 0, 1), 3)
        instances = Instances(
            self.size,
            pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
            scores=torch.tensor(scores, dtype=torch.float32),
            pred_classes=torch.tensor(classes),
        )
        if self.masks:
            instances.pred_masks_rle = mask_utils.frPyObjects([_octagon(box) for box in boxes], height, width)
        return instances


def _octagon(box: np.ndarray) -> list[float]:
    """A polygon x, y, x, y, … that cuts the corners of a box."""
    x = np.array([0.3, 0.7, 1, 1, 0.7, 0.3, 0, 0])
    y = np.array([0, 0, 0.3, 0.7, 1, 1, 0.7, 0.3])
    points = np.stack([box[0] + x * (box[2] - box[0]), box[1] + y * (box[3] - box[1])], axis=1)
    return points.round(2).flatten().tolist()


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def pycocotools_metrics(annotations: COCO, detections: list[dict[str, Any]], iou_type: str) -> dict[str, float]:
    """COCO's metrics in percent by pycocotools, NaN where it gives -1; ``detections`` are changed."""
    if iou_type == "segm":
        for item in detections:
            del item["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(annotations, annotations.loadRes(detections), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: float(value) for name, value in zip(COCO_METRICS, evaluation.stats, strict=False)}
    return {name: value * 100 if value >= 0 else float("nan") for name, value in values.items()}


class _NumPyWithFloat(types.ModuleType):
    """NumPy, and its former alias of the type ``float``."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class WorkingLVISEval(LVISEval):
    """lvis 0.5.3's evaluation where ``numpy.float`` is gone.

    Its ``accumulate`` runs with module globals of its own; neither NumPy nor lvis is changed.
    """

    accumulate = types.FunctionType(
        LVISEval.accumulate.__code__, {**LVISEval.accumulate.__globals__, "np": _NumPyWithFloat("numpy")}
    )


def lvis_metrics(
    annotations: LVIS, detections: list[dict[str, Any]], iou_type: str, max_dets: int = 300
) -> dict[str, float]:
    """LVIS' metrics in percent by lvis, -100 where there is nothing to find; ``detections`` are changed."""
    if iou_type == "segm":
        for item in detections:
            del item["bbox"]
    evaluation = WorkingLVISEval(annotations, LVISResults(annotations, detections, max_dets), iou_type)
    evaluation.run()
    return {name: float(evaluation.get_results()[name]) * 100 for name in LVIS_METRICS}


def read_coco(path: str) -> COCO:
    """pycocotools' index of a json file, without its chatter."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)
