"""Average precision of boxes and masks as LVIS defines it: federated annotations, classes grouped by frequency."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from detectron2.config.config import CfgNode
from detectron2.evaluation.category_blocks import AveragePrecision, evaluate_by_category
from detectron2.evaluation.detection_evaluator import DetectionEvaluator
from detectron2.evaluation.ground_truth import GroundTruth
from detectron2.evaluation.prediction_files import Detections
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

__all__ = ["LVISEvaluator"]

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_MAX_DETECTIONS = 300  # per image, by default


class LVISEvaluator(DetectionEvaluator):
    """AP of boxes ("bbox") and masks ("segm") in percent, with the numbers of the ``lvis`` package.

    Each task has AP, AP50, AP75, APs, APm, APl and, for rare, common and frequent classes, APr, APc, APf. A group
    without annotations gives -100, as lvis' -1 does in published tables. Detections of a class count in images known to
    hold it or not to hold it; where not all its instances are annotated, unmatched ones are left out.
    Computed by faster-coco-eval, a few classes at a time.
    """

    _result_file: ClassVar[str] = "lvis_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ) -> None:
        """Read the annotations of a registered data set.

        Args:
            dataset_name: its metadata have ``json_file``, in LVIS' format.
            tasks: some of "bbox" and "segm"; by default found from the predictions.
            distributed: gather the predictions of all processes; else each evaluates its own.
            output_dir: folder for "instances_predictions.pth" (a list of {"image_id", "instances"}) and
                "lvis_instances_results.json".
            max_dets_per_image: the best ones count, by default 300; -1 for all.
        """
        from lvis import LVIS  # imports matplotlib and opencv

        super().__init__(dataset_name, tasks, distributed, output_dir)
        self._max_dets_per_image = _MAX_DETECTIONS if max_dets_per_image is None else max_dets_per_image
        json_file = PathManager.get_local_path(self._metadata.json_file)
        self._lvis_api = LVIS(json_file)
        self._do_evaluation = bool(self._lvis_api.dataset["annotations"])
        self._ground_truth = GroundTruth(self._lvis_api.dataset, json_file, federated=True)

    def evaluate(self) -> dict[str, Any] | None:
        """Results of all tasks; None on all processes but the main one, {} where ``process`` was never called."""
        return self._evaluate(None)

    def _category_ids_without_metadata(self, classes: np.ndarray) -> np.ndarray:
        return classes + 1  # LVIS numbers its categories from 1

    def _evaluate_task(
        self, task: str, detections: Detections, image_ids: Sequence[int | str] | None
    ) -> dict[str, float]:
        if not len(detections):
            self._logger.warning("No predictions from the model!")
            return dict.fromkeys(_METRICS, float("nan"))
        limit = self._max_dets_per_image
        result = evaluate_by_category(
            self._ground_truth,
            detections,
            task,
            # Within an image at most as many of one category as of all of them.
            max_dets=[limit if limit >= 0 else len(detections)],
            max_dets_per_image=limit if limit >= 0 else None,
            image_ids=image_ids,
        )
        results = {name: value * 100 for name, value in self._summarize(result).items()}
        self._logger.info(f"Evaluation results for {task}:\n" + create_small_table(results))
        return results

    def _summarize(self, result: AveragePrecision) -> dict[str, float]:
        groups = {
            f"AP{group}": [i for i, frequency in enumerate(self._ground_truth.frequencies) if frequency == group]
            for group in "rcf"
        }
        return {
            "AP": result.mean(),
            "AP50": result.mean(iou=0.5),
            "AP75": result.mean(iou=0.75),
            "APs": result.mean(area="small"),
            "APm": result.mean(area="medium"),
            "APl": result.mean(area="large"),
            **{name: result.mean(categories=columns) for name, columns in groups.items()},
        }
