"""Average precision of boxes and masks as COCO defines it."""

import contextlib
import io
import itertools
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detectron2.config.config import CfgNode
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation.category_blocks import AveragePrecision, evaluate_by_category
from detectron2.evaluation.detection_evaluator import DetectionEvaluator
from detectron2.evaluation.ground_truth import GroundTruth
from detectron2.evaluation.instances_json import instances_to_coco_json
from detectron2.evaluation.prediction_files import Detections
from detectron2.utils.file_io import PathManager
from detectron2.utils.left_out import needs_real_detectron2
from detectron2.utils.logger import create_small_table

__all__ = ["COCOEvaluator", "instances_to_coco_json"]

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class COCOEvaluator(DetectionEvaluator):
    """AP of boxes ("bbox") and masks ("segm"), and recall of proposals ("box_proposals"), in percent.

    Each task has AP, AP50, AP75, APs, APm, APl, and with more than one class ``AP-<name>``; NaN where the data set has
    no annotation to find. Computed by faster-coco-eval; the numbers are those of pycocotools.
    """

    _result_file: ClassVar[str] = "coco_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        """Read the annotations of a registered data set.

        Args:
            dataset_name: its metadata have ``json_file``; without one it is converted to a json file in ``output_dir``.
            tasks: some of "bbox" and "segm"; by default found from the predictions.
            distributed: gather the predictions of all processes; else each evaluates its own.
            output_dir: folder for "instances_predictions.pth" (a list of {"image_id", "instances"}) and
                "coco_instances_results.json" (COCO's result format).
            max_dets_per_image: limit of detections per image and class, by default 100. Values below 10 leave AP at
                10: COCO sorts its limits [1, 10, n], and AP is that of the last one.
            use_fast_impl: False evaluates with pycocotools itself.
            allow_cached_coco: reuse a json file that was converted before.
        """
        super().__init__(dataset_name, tasks, distributed, output_dir)
        if len(kpt_oks_sigmas):
            raise needs_real_detectron2("COCOEvaluator(kpt_oks_sigmas=...)")
        if max_dets_per_image is not None and max_dets_per_image < 1:
            raise ValueError(f"max_dets_per_image is {max_dets_per_image}, expected at least 1")
        self._use_fast_impl = use_fast_impl
        self._max_dets_per_image = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        if getattr(self._metadata, "json_file", None) is None:
            if not output_dir:
                raise ValueError(
                    f"data set {dataset_name!r} has no json_file in its metadata, so it must be converted to COCO's "
                    f"format; give COCOEvaluator an output_dir to put that file into"
                )
            path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            self._logger.info(f"{dataset_name!r} is not in COCO's format; converting it to {path} ...")
            self._metadata.json_file = path
            convert_to_coco_json(dataset_name, path, allow_cached=allow_cached_coco)
        json_file = PathManager.get_local_path(self._metadata.json_file)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(json_file)
        # Test sets have no annotations: then results are written, not evaluated.
        self._do_evaluation = "annotations" in self._coco_api.dataset
        self._ground_truth = GroundTruth(self._coco_api.dataset, json_file, federated=False)

    def evaluate(self, img_ids: Sequence[int | str] | None = None) -> dict[str, Any]:
        """Results of all tasks; {} on all processes but the main one, and where ``process`` was never called.

        Args:
            img_ids: evaluate on these images only.
        """
        return self._evaluate(img_ids) or {}

    def _evaluate_task(
        self, task: str, detections: Detections, image_ids: Sequence[int | str] | None
    ) -> dict[str, float]:
        result = None  # nothing was detected at all
        if len(detections) and self._use_fast_impl:
            result = evaluate_by_category(
                self._ground_truth, detections, task, max_dets=self._max_dets_per_image, image_ids=image_ids
            )
            result.summarize()
        elif len(detections):
            result = self._evaluate_with_pycocotools(task, detections, image_ids)
        return self._derive_coco_results(result, task, class_names=self._metadata.get("thing_classes"))

    def _evaluate_with_pycocotools(
        self, task: str, detections: Detections, image_ids: Sequence[int | str] | None
    ) -> AveragePrecision:
        items = [detections.as_dict(row) for row in range(len(detections))]
        if task == "segm":
            for item in items:
                item.pop("bbox", None)  # areas are to be those of the masks
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._coco_api, self._coco_api.loadRes(items), task)
            evaluation.params.maxDets = self._max_dets_per_image
            if image_ids is not None:
                evaluation.params.imgIds = list(image_ids)
            evaluation.evaluate()
            evaluation.accumulate()
        result = AveragePrecision(evaluation.params, evaluation.eval)
        result.summarize()
        return result

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The metrics of one task, logged as tables.

        Args:
            coco_eval: with ``stats`` and ``eval["precision"]`` (IoU, recall, class, area, limit); None without any
                detection.
            class_names: for results per class.
        """
        if coco_eval is None:
            self._logger.warning("No predictions from the model!")
            return dict.fromkeys(_METRICS, float("nan"))
        results = {name: _percent(value) for name, value in zip(_METRICS, coco_eval.stats, strict=False)}
        self._logger.info(f"Evaluation results for {iou_type}:\n" + create_small_table(results))
        if not np.isfinite(list(results.values())).all():
            self._logger.info("Some metrics cannot be computed and are shown as NaN.")
        if class_names is None or len(class_names) <= 1:
            return results
        precision = coco_eval.eval["precision"][:, :, :, 0, -1]  # of all areas, at the last limit
        if len(class_names) != precision.shape[2]:
            raise ValueError(
                f"data set {self._metadata.name!r} has {len(class_names)} thing_classes, "
                f"but {self._ground_truth.name} has {precision.shape[2]} categories"
            )
        per_class = []
        for index, name in enumerate(class_names):
            values = precision[:, :, index]
            values = values[values > -1]
            per_class.append((name, float(values.mean() * 100) if values.size else float("nan")))
        self._logger.info(f"Per-category {iou_type} AP:\n" + _table_in_columns(per_class))
        results.update({f"AP-{name}": value for name, value in per_class})
        return results


def _percent(value: float) -> float:
    return float(value * 100) if value >= 0 else float("nan")


def _table_in_columns(rows: list[tuple[str, float]], columns: int = 3) -> str:
    """(name, AP) pairs, three on a line."""
    cells = list(itertools.chain(*rows))
    lines = itertools.zip_longest(*[cells[i :: 2 * columns] for i in range(2 * columns)])
    return tabulate(lines, tablefmt="pipe", floatfmt=".3f", headers=["category", "AP"] * columns, numalign="left")
