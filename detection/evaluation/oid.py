"""The evaluator of data sets in Open Images format."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from detection.data.datasets.annotation_json import not_found
from detection.evaluation.open_images_ap import (
    OpenImagesDetections,
    OpenImagesGroundTruth,
    OpenImagesResult,
    class_ancestors,
    evaluate_detections,
)
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from prompt_pretrain.atomic_files import atomic_writer, write_npy
from prompt_pretrain.errors import InputError

__all__ = ["OIDEvaluator"]

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 300  # per image
_HIERARCHY_NAME = "challenge-2019-label500-hierarchy.json"


@dataclass(frozen=True)
class _Predictions:
    """Detections of one image: arrays, since a list of dicts of a big data set would fill the memory."""

    image_id: int | str
    label: np.ndarray  # (n,) class indices
    box: np.ndarray  # (n, 4) float32, x, y, width, height
    score: np.ndarray  # (n,) float32
    masks: list[dict[str, Any]] | None


class OIDEvaluator(DatasetEvaluator):
    """AP at IoU 0.5 as the Open Images Challenge defines it, as fractions (not percent) under ``bbox``.

    ``AP50`` counts each detection for its own class. Without masks there is also ``AP50_expand``, the published number:
    each detection counts for every ancestor of its class too. With masks there is ``AP50_segm`` instead.
    """

    def __init__(
        self,
        dataset_name: str,
        cfg: CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        with_masks: bool | None = None,
        hierarchy_file: str | os.PathLike | None = None,
    ) -> None:
        """Read the annotations and the hierarchy of a registered data set.

        Args:
            dataset_name: its metadata have ``json_file``.
            cfg: of which ``MODEL.MASK_ON`` is read.
            distributed: gather the detections of all processes; else each evaluates its own.
            output_dir: folder for "oid_instances_results.json" (COCO's result format) and "oid_mAP.npy" (AP50 per
                class, the expanded one where it exists; -1 without ground truth).
            with_masks: evaluate masks too; overrides ``cfg``.
            hierarchy_file: by default the metadata's ``hierarchy_file``, else the challenge's file beside the json.
        Raises:
            InputError: a file is missing or not in the format.
        """
        self._distributed = distributed
        self._output_dir = output_dir
        self._with_masks = bool(cfg is not None and cfg.MODEL.MASK_ON) if with_masks is None else with_masks
        metadata = MetadataCatalog.get(dataset_name)
        json_file = PathManager.get_local_path(str(metadata.json_file))
        self._ground_truth = OpenImagesGroundTruth(
            _read_json(json_file, f"the annotations of {dataset_name}"), json_file
        )
        self._names = [category.get("name", str(category["id"])) for category in self._ground_truth.categories]
        self._ancestors: list[list[int]] | None = None
        if not self._with_masks:
            default = metadata.get("hierarchy_file") or os.path.join(os.path.dirname(json_file), _HIERARCHY_NAME)
            self._ancestors = self._read_hierarchy(str(hierarchy_file or default), json_file)
        if output_dir:
            PathManager.mkdirs(output_dir)
        self._predictions: list[_Predictions] = []

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take the detections of a batch.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances" (pred_boxes, scores, pred_classes, and pred_masks for masks), at the size of
                the original image.
        """
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            self._predictions.append(_to_arrays(instances, record["image_id"], self._with_masks))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"bbox": {...}}`` on the main process; {} on the others, and where ``process`` was never called."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return {}
            predictions = [prediction for part in gathered for prediction in part]
        if not predictions:
            logger.warning("[OIDEvaluator] Did not receive valid predictions.")
            return {}
        if self._output_dir:
            self._write_results(predictions)
        detections = self._join(predictions)
        results = {"AP50": self._evaluate("AP50", detections)}
        if self._with_masks:
            results["AP50_segm"] = self._evaluate("AP50_segm", detections, with_masks=True)
        else:
            results["AP50_expand"] = self._evaluate("AP50_expand", detections, ancestors=self._ancestors)
        if self._output_dir:
            write_npy(os.path.join(self._output_dir, "oid_mAP.npy"), list(results.values())[-1].ap)
        return {"bbox": {key: result.mean_ap for key, result in results.items()}}

    def _evaluate(self, key: str, detections: OpenImagesDetections, **options: Any) -> OpenImagesResult:
        result = evaluate_detections(self._ground_truth, detections, max_detections=MAX_DETECTIONS, **options)
        logger.info(
            "%s: %.5f (mean of %d classes with annotations); weighted by their number of instances: %.5f",
            key,
            result.mean_ap,
            np.count_nonzero(result.num_annotations),
            result.instance_weighted_ap,
        )
        rows = sorted(zip(self._names, result.ap.tolist(), strict=True))
        logger.debug("%s per class: %s", key, ", ".join(f"{name} {ap:.4f}" for name, ap in rows if ap >= 0))
        return result

    def _join(self, predictions: Sequence[_Predictions]) -> OpenImagesDetections:
        """All detections of images that the annotations know, of known classes."""
        truth = self._ground_truth
        known = [prediction for prediction in predictions if prediction.image_id in truth.row_of_image]
        if len(known) < len(predictions):
            logger.warning("%d images are not in %s and do not count", len(predictions) - len(known), truth.source)
        label = np.concatenate([np.zeros(0, dtype=np.int64), *(prediction.label for prediction in known)])
        if len(label) and (label.min() < 0 or label.max() >= truth.num_classes):
            wrong = label.min() if label.min() < 0 else label.max()
            raise InputError(
                f"a detection has class {wrong}, but {truth.source} has {truth.num_classes} categories (indices 0 to "
                f"{truth.num_classes - 1}); set MODEL.ROI_HEADS.NUM_CLASSES or TEST_NUM_CLASSES to {truth.num_classes}"
            )
        counts = [len(prediction.label) for prediction in known]
        masks = None
        if self._with_masks:
            masks = np.empty(len(label), dtype=object)
            masks[:] = [mask for prediction in known for mask in prediction.masks or ()]
        return OpenImagesDetections(
            image=np.repeat(
                np.array([truth.row_of_image[item.image_id] for item in known], dtype=np.int64),
                np.array(counts, dtype=np.int64),
            ),
            label=label,
            box=np.concatenate([np.zeros((0, 4), dtype=np.float32), *(prediction.box for prediction in known)]),
            score=np.concatenate([np.zeros(0, dtype=np.float32), *(prediction.score for prediction in known)]),
            masks=masks,
        )

    def _write_results(self, predictions: Sequence[_Predictions]) -> None:
        path = os.path.join(self._output_dir or "", "oid_instances_results.json")
        logger.info("Saving results to %s", path)
        with atomic_writer(path, "w") as file:
            file.write("[")
            for number, row in enumerate(self._result_rows(predictions)):
                file.write((",\n" if number else "") + json.dumps(row))
            file.write("]\n")

    def _result_rows(self, predictions: Sequence[_Predictions]) -> Iterator[dict[str, Any]]:
        ids = self._ground_truth.category_ids
        for item in predictions:
            columns = zip(item.label.tolist(), item.box.tolist(), item.score.tolist(), strict=True)
            for position, (label, box, score) in enumerate(columns):
                # A class without a category has the next number, and evaluating it will say so.
                category = ids[label] if 0 <= label < len(ids) else label + 1
                row = {"image_id": item.image_id, "category_id": category, "bbox": box, "score": score}
                yield row | {"segmentation": item.masks[position]} if item.masks else row

    def _read_hierarchy(self, path: str, json_file: str) -> list[list[int]]:
        if not PathManager.isfile(path):
            raise InputError(
                f"no class hierarchy {path}, which AP50_expand needs; download it from the Open Images Challenge 2019 "
                f"into {os.path.dirname(json_file) or '.'}"
            )
        names = [category.get("freebase_id", category.get("name", "")) for category in self._ground_truth.categories]
        ancestors = read_ancestors(path, names)
        if len(names) > 1 and not any(ancestors):
            logger.warning("%s names no ancestor of any class: AP50_expand will equal AP50", path)
        return ancestors


def read_ancestors(path: str, names: Sequence[str]) -> list[list[int]]:
    """See :func:`class_ancestors`; of a json file.

    Raises:
        InputError: no such file, or no tree of classes.
    """
    hierarchy = _read_json(path, "the class hierarchy")
    try:
        return class_ancestors(hierarchy, names)
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path} is no tree of classes with LabelName and Subcategory ({error})") from error


def _to_arrays(instances: Instances, image_id: int | str, with_masks: bool) -> _Predictions:
    box = instances.pred_boxes.tensor.numpy().astype(np.float32)
    box[:, 2:] -= box[:, :2]
    masks = None
    if with_masks:
        rows = instances_to_coco_json(instances, image_id)
        if any("segmentation" not in row for row in rows):
            raise InputError("MODEL.MASK_ON is True, but the detections have no masks; set it to False")
        masks = [row["segmentation"] for row in rows]
    label = instances.pred_classes.numpy().astype(np.int64)
    return _Predictions(image_id, label, box, instances.scores.numpy().astype(np.float32), masks)


def _read_json(path: str, what: str) -> Any:
    try:
        with PathManager.open(path, "r", encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise not_found(f"{path} ({what})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} ({what}) is no valid JSON: {error}") from error
