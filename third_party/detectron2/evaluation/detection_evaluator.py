"""What COCO and LVIS evaluation have in common: collecting detections, writing them down, running tasks."""

import copy
import itertools
import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from detectron2.config.config import CfgNode
from detectron2.data.catalog import MetadataCatalog
from detectron2.evaluation.box_proposals import evaluate_box_proposals
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.evaluation.ground_truth import GroundTruth
from detectron2.evaluation.instances_json import instances_to_coco_json
from detectron2.evaluation.prediction_files import DetectionFiles, Detections
from detectron2.evaluation.result_files import write_json_list, write_torch_list
from detectron2.structures.boxes import BoxMode
from detectron2.utils.atomic import atomic_write
from detectron2.utils.comm import is_main_process
from detectron2.utils.file_io import PathManager
from detectron2.utils.left_out import needs_real_detectron2
from detectron2.utils.logger import create_small_table

__all__ = ["DetectionEvaluator"]

_TASKS = {"bbox", "segm"}


class DetectionEvaluator(DatasetEvaluator):
    """Base of the evaluators for boxes and masks; a subclass says where the ground truth is and what to report."""

    _result_file: ClassVar[str]
    _ground_truth: GroundTruth
    _do_evaluation: bool  # whether the ground truth has annotations

    def __init__(
        self, dataset_name: str, tasks: Sequence[str] | CfgNode | None, distributed: bool, output_dir: str | None
    ) -> None:
        self._logger = logging.getLogger(__name__)
        self._cpu_device = torch.device("cpu")
        self._distributed = distributed
        self._output_dir = output_dir
        self._metadata = MetadataCatalog.get(dataset_name)
        if isinstance(tasks, CfgNode):
            self._logger.warning(f"{type(self).__name__} finds its tasks itself; the config given as tasks is ignored")
            tasks = None
        for task in tasks or ():
            if task == "keypoints":
                raise needs_real_detectron2("evaluation of keypoints")
            if task not in _TASKS:
                raise ValueError(f"{task!r} is no task of {type(self).__name__}, expected some of {sorted(_TASKS)}")
        self._tasks = tasks
        if output_dir:
            PathManager.mkdirs(output_dir)
        self._predictions = self._proposals = None

    def reset(self) -> None:
        for files in (self._predictions, self._proposals):
            if isinstance(files, DetectionFiles):
                files.remove()
        self._predictions = DetectionFiles(self._output_dir)
        self._proposals = DetectionFiles(self._output_dir)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take the detections of a batch.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances" (pred_boxes, scores, pred_classes, and pred_masks where there are), or
                "proposals" (proposal_boxes, objectness_logits), at the size of the original image.
        """
        for record, output in zip(inputs, outputs, strict=False):
            image_id = record["image_id"]
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                detections = instances_to_coco_json(instances, image_id)
                self._predictions.append({"image_id": image_id, "instances": detections})
            if "proposals" in output:
                proposals = output["proposals"].to(self._cpu_device)
                boxes = proposals.proposal_boxes.tensor.tolist()
                logits = proposals.objectness_logits.tolist()
                rows = [
                    {"category_id": 0, "bbox": box, "score": score} for box, score in zip(boxes, logits, strict=True)
                ]
                self._proposals.append({"image_id": image_id, "instances": rows})

    def _evaluate(self, image_ids: Sequence[int | str] | None) -> dict[str, Any] | None:
        """Results on the main process, None on the others."""
        detections = _stored(self._predictions, self._output_dir).gather(self._distributed)
        proposals = _stored(self._proposals, self._output_dir).gather(self._distributed)
        if self._distributed and not is_main_process():
            return None
        if not detections.image_ids and not proposals.image_ids:
            self._logger.warning(f"[{type(self).__name__}] Did not receive valid predictions.")
            return {}
        results: dict[str, Any] = OrderedDict()
        if proposals.image_ids:
            self._evaluate_proposals(proposals, results)
        if detections.image_ids:
            if self._output_dir:
                path = os.path.join(self._output_dir, "instances_predictions.pth")
                write_torch_list(path, detections.by_image())
            self._evaluate_detections(detections, image_ids, results)
        return copy.deepcopy(results)

    def _evaluate_detections(
        self, detections: Detections, image_ids: Sequence[int | str] | None, results: dict[str, Any]
    ) -> None:
        self._logger.info(f"Preparing {len(detections)} detections on {len(detections.image_ids)} images ...")
        tasks = self._tasks or (("bbox", "segm") if detections.has_masks else ("bbox",))
        if any("keypoints" in item for item in detections.extra.values()) and not self._tasks:
            self._logger.warning("Keypoints are not evaluated: that needs the real detectron2")
        detections.category = self._category_ids(detections.category)
        if self._output_dir:
            path = os.path.join(self._output_dir, self._result_file)
            self._logger.info(f"Saving results to {path}")
            write_json_list(path, (detections.as_dict(row) for row in range(len(detections))))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        for task in sorted(tasks):
            results[task] = self._evaluate_task(task, detections, image_ids)

    def _evaluate_task(
        self, task: str, detections: Detections, image_ids: Sequence[int | str] | None
    ) -> dict[str, float]:
        raise NotImplementedError

    def _category_ids(self, classes: np.ndarray) -> np.ndarray:
        """Ids in the annotations of the model's class indices."""
        if not hasattr(self._metadata, "thing_dataset_id_to_contiguous_id"):
            return self._category_ids_without_metadata(classes)
        to_contiguous = self._metadata.thing_dataset_id_to_contiguous_id
        count = len(to_contiguous)
        if sorted(to_contiguous.values()) != list(range(count)):
            raise ValueError(
                f"thing_dataset_id_to_contiguous_id of data set {self._metadata.name!r} must map to 0 … {count - 1}, "
                f"each once; got {sorted(to_contiguous.values())}"
            )
        outside = np.unique(classes[(classes < 0) | (classes >= count)])
        if len(outside):
            raise ValueError(
                f"a prediction has class {outside[0]}, but data set {self._metadata.name!r} has {count} classes, "
                f"indices 0 to {count - 1}; is MODEL.ROI_HEADS.NUM_CLASSES {count}?"
            )
        ids = np.zeros(count, dtype=np.int64)
        ids[list(to_contiguous.values())] = list(to_contiguous.keys())
        return ids[classes]

    def _category_ids_without_metadata(self, classes: np.ndarray) -> np.ndarray:
        return classes

    def _evaluate_proposals(self, proposals: Detections, results: dict[str, Any]) -> None:
        """Recall of box proposals, as "box_proposals"; changes ``results``."""
        bounds = np.searchsorted(proposals.image, np.arange(len(proposals.image_ids) + 1))
        slices = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        boxes = [proposals.box[rows].astype(np.float32) for rows in slices]
        logits = [proposals.score[rows].astype(np.float32) for rows in slices]
        if self._output_dir:
            with atomic_write(os.path.join(self._output_dir, "box_proposals.pkl"), "wb") as file:
                content = {
                    "boxes": boxes,
                    "objectness_logits": logits,
                    "ids": proposals.image_ids,
                    "bbox_mode": BoxMode.XYXY_ABS.value,
                }
                pickle.dump(content, file)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        per_image = {
            image_id: (torch.from_numpy(boxes[index]), torch.from_numpy(logits[index]))
            for index, image_id in enumerate(proposals.image_ids)
        }
        annotations = self._ground_truth.by_image()
        results["box_proposals"] = {
            f"AR{'' if area == 'all' else area[0]}@{limit}": 100
            * evaluate_box_proposals(per_image, annotations, area=area, limit=limit)
            for limit in (100, 1000)
            for area in ("all", "small", "medium", "large")
        }
        self._logger.info("Proposal metrics:\n" + create_small_table(results["box_proposals"]))


def _stored(predictions: Any, folder: str | None) -> DetectionFiles:
    """The predictions on disk, also where a subclass keeps a plain list."""
    if isinstance(predictions, DetectionFiles):
        return predictions
    files = DetectionFiles(folder)
    files.extend(predictions or ())
    return files
