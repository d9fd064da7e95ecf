"""COCO evaluation that also averages AP50 over the seen and over the unseen classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from prompt_pretrain.vocabulary import Vocabulary, load_vocabulary

__all__ = ["CustomCOCOEvaluator", "seen_and_unseen_names"]


def seen_and_unseen_names(dataset_name: str) -> tuple[list[str], list[str]]:
    """Names of the classes with and without boxes in training.

    They are the metadata's ``seen_classes`` and ``unseen_classes``, where a data set has them, else the 48 base and 17
    novel classes of COCO.
    """
    metadata = MetadataCatalog.get(dataset_name)
    coco: Vocabulary = load_vocabulary("coco")
    seen, unseen = metadata.get("seen_classes"), metadata.get("unseen_classes")
    return (
        list(coco.subset("base").class_names if seen is None else seen),
        list(coco.subset("novel").class_names if unseen is None else unseen),
    )


class CustomCOCOEvaluator(COCOEvaluator):
    """:class:`COCOEvaluator` with ``AP50-seen`` and ``AP50-unseen`` in percent.

    A class that the data set does not annotate has no AP50, and makes the mean of its group NaN, as in the published
    evaluation; a class that it does not have counts likewise.
    """

    def __init__(self, dataset_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(dataset_name, *args, **kwargs)
        self._groups = dict(zip(("seen", "unseen"), seen_and_unseen_names(dataset_name), strict=True))

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        ap50 = {} if coco_eval is None or class_names is None else _ap50_per_class(coco_eval, class_names)
        for group, names in self._groups.items():
            values = [ap50.get(name, float("nan")) for name in names]
            results[f"AP50-{group}"] = float(np.mean(values)) if values else float("nan")
            self._logger.info(f"{iou_type} AP50 of {len(names)} {group} classes: {results[f'AP50-{group}']:.3f}")
        return results


def _ap50_per_class(coco_eval: Any, class_names: Sequence[str]) -> dict[str, float]:
    """AP at IoU 0.5 in percent, all areas, at the last limit of detections; NaN without ground truth."""
    index = int(np.flatnonzero(np.isclose(coco_eval.params.iouThrs, 0.5))[0])
    precision = np.asarray(coco_eval.eval["precision"])[index, :, :, 0, -1]  # (recall thresholds, classes)
    valid = precision > -1
    counts = valid.sum(axis=0)
    sums = np.where(valid, precision, 0).sum(axis=0)
    means = np.divide(100 * sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return dict(zip(class_names, means.tolist(), strict=True))
