"""What a detector found in one image: boxes, masks, scores and class names, and how they become COCO json."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from prompt_pretrain.errors import InputError

__all__ = ["Detection", "DetectionResult", "coco_file"]


@dataclass(frozen=True, eq=False)
class Detection:
    """One detection.

    Attributes:
        class_name: as the vocabulary spells it.
        class_id: position in the vocabulary.
        score: in [0, 1].
        box: x0, y0, x1, y1 in pixels of the original image.
        mask: (H, W) bool, or None from a detector without masks.
    """

    class_name: str
    class_id: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """All detections of one image, best first. Its length is their number; iterating gives :class:`Detection`.

    Attributes:
        instances: detectron2's form, on the CPU: ``pred_boxes``, ``scores``, ``pred_classes``, maybe ``pred_masks``.
        vocabulary: the class names that were looked for.
        source: the image's path, ``VIDEO#FRAME`` or its number in the list.
        index: position among the inputs.
    """

    instances: Instances
    vocabulary: tuple[str, ...]
    source: str = ""
    index: int = 0

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[Detection]:
        masks = self.masks
        rows = zip(self.class_ids.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        for number, (class_id, score, box) in enumerate(rows):
            mask = masks[number].numpy() if masks is not None else None
            yield Detection(self.vocabulary[class_id], class_id, score, tuple(box), mask)

    def __repr__(self) -> str:
        best = ", ".join(f"{found.class_name} {found.score:.2f}" for found in _first(self, 3))
        return f"DetectionResult({self.source or self.index}: {len(self)} detections{': ' + best if best else ''})"

    @property
    def height(self) -> int:
        """Of the image in pixels."""
        return self.instances.image_size[0]

    @property
    def width(self) -> int:
        """Of the image in pixels."""
        return self.instances.image_size[1]

    @property
    def boxes(self) -> Tensor:
        """(n, 4) x0, y0, x1, y1 in pixels of the original image."""
        return self.instances.pred_boxes.tensor

    @property
    def scores(self) -> Tensor:
        """(n,) in [0, 1], descending."""
        return self.instances.scores

    @property
    def class_ids(self) -> Tensor:
        """(n,) positions in the vocabulary."""
        return self.instances.pred_classes

    @property
    def class_names(self) -> list[str]:
        """The class name of each detection."""
        return [self.vocabulary[class_id] for class_id in self.class_ids.tolist()]

    @property
    def masks(self) -> Tensor | None:
        """(n, H, W) bool, or None from a detector without masks."""
        return self.instances.pred_masks if self.instances.has("pred_masks") else None

    def above(self, score: float) -> "DetectionResult":
        """Only the detections with at least this score."""
        return self._with(self.instances[self.scores >= score])

    def of(self, *class_names: str) -> "DetectionResult":
        """Only the detections of these classes.

        Raises:
            InputError: a name that was not looked for.
        """
        unknown = [name for name in class_names if name not in self.vocabulary]
        if unknown:
            raise InputError(f"class {unknown[0]!r} is not among the {len(self.vocabulary)} classes of this result")
        wanted = {self.vocabulary.index(name) for name in class_names}
        rows = [row for row, class_id in enumerate(self.class_ids.tolist()) if class_id in wanted]
        return self._with(self.instances[rows])

    def to_coco(
        self, image_id: int | str | None = None, category_ids: Mapping[int, int] | Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """One entry per detection in the format of COCO's result files.

        Each holds ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``, ``segmentation``
        (compressed run lengths) where there are masks, and ``category_name``, which COCO's tools ignore.

        Args:
            image_id: default: :attr:`index`.
            category_ids: position in the vocabulary -> id; default: position + 1.
        """
        entries = instances_to_coco_json(self.instances, self.index if image_id is None else image_id)
        for entry in entries:
            class_id = entry["category_id"]
            entry["category_id"] = class_id + 1 if category_ids is None else category_ids[class_id]
            entry["category_name"] = self.vocabulary[class_id]
        return entries

    def draw(self, image: np.ndarray, min_score: float = 0.0) -> np.ndarray:
        """The image (H, W, 3) RGB uint8 with boxes, masks and names drawn over it."""
        from prompt_pretrain.overlays import draw_detections

        shown = self.above(min_score)
        masks = shown.masks.numpy() if shown.masks is not None else None
        return draw_detections(image, shown.boxes.numpy(), shown.class_names, shown.scores.tolist(), masks)

    def _with(self, instances: Instances) -> "DetectionResult":
        return DetectionResult(instances, self.vocabulary, self.source, self.index)


def coco_file(results: Iterable[DetectionResult]) -> dict[str, Any]:
    """Results of one vocabulary as a whole COCO json: ``images``, ``annotations`` (with scores), ``categories``.

    Image ids are the results' :attr:`~DetectionResult.index`, category ids positions in the vocabulary + 1.

    Raises:
        InputError: results of different vocabularies.
    """
    images, annotations = [], []
    vocabulary: tuple[str, ...] | None = None
    for result in results:
        if vocabulary not in (None, result.vocabulary):
            raise InputError("results of different vocabularies do not fit into one COCO file; write one file for each")
        vocabulary = result.vocabulary
        images.append({"id": result.index, "file_name": result.source, "height": result.height, "width": result.width})
        for entry in result.to_coco():
            width, height = entry["bbox"][2:]
            annotations.append({"id": len(annotations) + 1, **entry, "area": width * height, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(vocabulary or (), start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _first(result: DetectionResult, count: int) -> list[Detection]:
    return list(DetectionResult(result.instances[:count], result.vocabulary))
