"""Cityscapes: semantic predictions in the format of its evaluation server, and their IoU."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.evaluation.sem_seg_evaluation import SemSegEvaluator
from detectron2.utils.left_out import needs_real_detectron2

__all__ = ["CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator"]

# Label id of each of the 19 training classes, by Cityscapes' definition.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class CityscapesSemSegEvaluator(SemSegEvaluator):
    """IoU in percent of label maps with Cityscapes' training classes.

    With ``output_dir``, ``<image>_pred.png`` with Cityscapes' label ids are written there, as its server and
    cityscapesscripts expect them.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None) -> None:
        super().__init__(dataset_name, distributed, output_dir)
        if output_dir and self._num_classes != len(_LABEL_IDS):
            raise ValueError(
                f"data set {dataset_name!r} has {self._num_classes} classes, Cityscapes has {len(_LABEL_IDS)}; "
                f"without output_dir it can be evaluated all the same"
            )

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        super().process(inputs, outputs)
        if not self._output_dir:
            return
        os.makedirs(self._output_dir, exist_ok=True)
        to_id = np.array(_LABEL_IDS, dtype=np.uint8)
        for record, output in zip(inputs, outputs, strict=False):
            labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
            stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
            Image.fromarray(to_id[labels]).save(os.path.join(self._output_dir, f"{stem}_pred.png"))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """As of ``SemSegEvaluator``, and the mean under Cityscapes' name "IoU" in front."""
        results = super().evaluate()
        if results is not None:
            results["sem_seg"] = {"IoU": results["sem_seg"]["mIoU"], **results["sem_seg"]}
        return results


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """Raises ImportError when it is made: needs the real detectron2 and cityscapesscripts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise needs_real_detectron2("detectron2.evaluation.CityscapesInstanceEvaluator")
