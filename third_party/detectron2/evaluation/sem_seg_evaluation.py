"""Semantic segmentation: IoU and accuracy from a confusion matrix, boundary IoU."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.evaluation.instances_json import encode_masks
from detectron2.evaluation.prediction_files import JsonLines
from detectron2.evaluation.result_files import write_json_list
from detectron2.utils.atomic import atomic_write
from detectron2.utils.comm import all_gather, is_main_process
from detectron2.utils.file_io import PathManager

__all__ = ["SemSegEvaluator", "load_image_into_numpy_array"]

_BOUNDARY_RATIO = 0.02  # width of a boundary, as a fraction of the image's diagonal
_MAX_BOUNDARY_CLASSES = 255  # boundaries are computed on uint8 maps


def load_image_into_numpy_array(filename: str, copy: bool = False, dtype: np.dtype | type | None = None) -> np.ndarray:
    """Pixel values of an image file as stored, (H, W) for a label map; 16-bit files too."""
    with PathManager.open(filename, "rb") as file, Image.open(file) as image:
        return np.array(image, copy=copy or None, dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """Mean IoU, frequency-weighted IoU and accuracies in percent, for all and for each class.

    Means leave out classes that no ground-truth pixel has. Only a confusion matrix is kept in memory.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ) -> None:
        """Look up the ground truth of a registered data set.

        Args:
            dataset_name: its dicts have file_name and sem_seg_file_name, its metadata stuff_classes, ignore_label and
                optionally stuff_dataset_id_to_contiguous_id.
            distributed: add up the confusion matrices of all processes; else each evaluates its own.
            output_dir: folder for "sem_seg_predictions.json" (a run-length encoding per image and class) and
                "sem_seg_evaluation.pth".
            sem_seg_loading_fn: called with a file and ``dtype=int``, returns its label map (H, W).
            num_classes: out of date; must be the number of stuff_classes.
            ignore_label: out of date; overrides that of the metadata.
        """
        self._logger = logging.getLogger(__name__)
        if num_classes is not None:
            self._logger.warning("SemSegEvaluator(num_classes) is out of date: it is taken from the metadata.")
        if ignore_label is not None:
            self._logger.warning("SemSegEvaluator(ignore_label) is out of date: it is taken from the metadata.")
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self.sem_seg_loading_fn = sem_seg_loading_fn
        self.input_file_to_gt_file = {
            record["file_name"]: record["sem_seg_file_name"] for record in DatasetCatalog.get(dataset_name)
        }
        metadata = MetadataCatalog.get(dataset_name)
        to_contiguous = metadata.get("stuff_dataset_id_to_contiguous_id")
        self._contiguous_id_to_dataset_id = to_contiguous and {v: k for k, v in to_contiguous.items()}
        self._class_names = metadata.stuff_classes
        self._num_classes = len(self._class_names)
        if num_classes is not None and num_classes != self._num_classes:
            raise ValueError(
                f"num_classes is {num_classes}, but data set {dataset_name!r} has {self._num_classes} stuff_classes"
            )
        self._ignore_label = metadata.get("ignore_label") if ignore_label is None else ignore_label
        self._compute_boundary_iou = self._num_classes < _MAX_BOUNDARY_CLASSES
        if not self._compute_boundary_iou:
            self._logger.warning(f"No boundary IoU: it supports less than {_MAX_BOUNDARY_CLASSES} classes")

    def reset(self) -> None:
        shape = (self._num_classes + 1, self._num_classes + 1)
        self._conf_matrix = np.zeros(shape, dtype=np.int64)  # [prediction, ground truth], the last one is "ignore"
        self._b_conf_matrix = np.zeros(shape, dtype=np.int64)
        self._predictions = JsonLines(self._output_dir)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: dicts with the "file_name" of an image of the data set.
            outputs: dicts with "sem_seg", scores (classes, H, W) at the size of the label map.
        Raises:
            ValueError: another size, or a label that is no class; names the file.
        """
        for record, output in zip(inputs, outputs, strict=False):
            prediction = output["sem_seg"].argmax(dim=0)
            gt = self._load_ground_truth(record["file_name"], tuple(prediction.shape))
            # On the device of the prediction: only the counts travel.
            self._conf_matrix += self._count(prediction, gt.to(prediction.device))
            if not (self._compute_boundary_iou or self._output_dir):
                continue
            labels = prediction.to(self._cpu_device).numpy()
            if self._compute_boundary_iou:
                b_prediction = torch.from_numpy(self._mask_to_boundary(labels.astype(np.uint8)))
                b_gt = torch.from_numpy(self._mask_to_boundary(gt.numpy().astype(np.uint8)))
                self._b_conf_matrix += self._count(b_prediction.long(), b_gt.long())
            if self._output_dir:
                self._predictions.extend(self.encode_json_sem_seg(labels, record["file_name"]))

    def _load_ground_truth(self, file_name: str, size: tuple[int, int]) -> Tensor:
        """(H, W) int64 label map of an image, "ignore" as the index behind the last class."""
        if file_name not in self.input_file_to_gt_file:
            raise ValueError(f"data set {self._dataset_name!r} has no label map for {file_name}")
        gt_file = self.input_file_to_gt_file[file_name]
        gt = torch.from_numpy(np.array(self.sem_seg_loading_fn(gt_file, dtype=int), dtype=np.int64))
        if tuple(gt.shape) != size:
            raise ValueError(
                f"label map {gt_file} has the size (height, width) {tuple(gt.shape)}, but the prediction for "
                f"{file_name} {size}; predictions must have the size of the label map"
            )
        if self._ignore_label is not None:
            gt[gt == self._ignore_label] = self._num_classes
        outside = gt[(gt < 0) | (gt > self._num_classes)]
        if outside.numel():
            raise ValueError(
                f"label map {gt_file} has {outside.numel()} pixels with labels {outside.unique().tolist()[:10]}, which "
                f"are neither one of {self._num_classes} classes nor the ignore_label {self._ignore_label}"
            )
        return gt

    def _count(self, prediction: Tensor, gt: Tensor) -> np.ndarray:
        """Confusion matrix of two int64 maps with labels up to the number of classes."""
        side = self._num_classes + 1
        if prediction.max() > self._num_classes:
            raise ValueError(
                f"the model predicts class {int(prediction.max())}, but data set {self._dataset_name!r} has "
                f"{self._num_classes} classes; is MODEL.SEM_SEG_HEAD.NUM_CLASSES {self._num_classes}?"
            )
        counts = torch.bincount((prediction * side + gt).flatten(), minlength=side**2)
        return counts.reshape(side, side).cpu().numpy()

    def _mask_to_boundary(self, mask: np.ndarray, dilation_ratio: float = _BOUNDARY_RATIO) -> np.ndarray:
        """How far each label (H, W) uint8 is above the smallest one near it; 0 away from boundaries.

        "Near" is 2 % of the image's diagonal, at least one pixel. Outside of the image the label is 0.
        """
        height, width = mask.shape
        radius = max(round(dilation_ratio * float(np.hypot(height, width))), 1)
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=radius)
        return mask - eroded[1:-1, 1:-1]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"sem_seg": {metric: percent}}`` on the main process, None on the others."""
        predictions = self._predictions
        if self._distributed:
            matrices = all_gather((self._conf_matrix, self._b_conf_matrix))
            if isinstance(predictions, JsonLines):
                predictions = predictions.gather()
            else:  # a subclass keeps a list
                predictions = [item for items in all_gather(predictions) for item in items]
            if not is_main_process():
                return None
            self._conf_matrix = sum(matrix for matrix, _ in matrices)
            self._b_conf_matrix = sum(matrix for _, matrix in matrices)
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            write_json_list(os.path.join(self._output_dir, "sem_seg_predictions.json"), predictions)
        results = self._metrics()
        if self._output_dir:
            with atomic_write(os.path.join(self._output_dir, "sem_seg_evaluation.pth"), "wb") as file:
                torch.save(results, file)
        self._logger.info(results)
        return OrderedDict({"sem_seg": results})

    def _metrics(self) -> dict[str, float]:
        """All metrics in percent; NaN for a class that no pixel has."""
        true_positive, gt, predicted = _sums(self._conf_matrix)
        with np.errstate(invalid="ignore", divide="ignore"):
            accuracy = np.where(gt > 0, true_positive / gt, np.nan)
            iou = np.where(gt > 0, true_positive / (gt + predicted - true_positive), np.nan)
            boundary_iou = None
            if self._compute_boundary_iou:
                b_true_positive, b_gt, b_predicted = _sums(self._b_conf_matrix)
                union = b_gt + b_predicted - b_true_positive
                boundary_iou = np.where(union > 0, b_true_positive / union, np.nan)
        counted = gt > 0
        frequency = gt / gt.sum() if gt.sum() else gt
        results = {"mIoU": _mean(iou[counted]), "fwIoU": 100 * float((iou * frequency)[counted].sum())}
        for index, name in enumerate(self._class_names):
            results[f"IoU-{name}"] = 100 * float(iou[index])
            if boundary_iou is not None:
                results[f"BoundaryIoU-{name}"] = 100 * float(boundary_iou[index])
                results[f"min(IoU, B-Iou)-{name}"] = 100 * float(np.minimum(iou[index], boundary_iou[index]))
        results["mACC"] = _mean(accuracy[counted])
        results["pACC"] = 100 * float(true_positive.sum() / gt.sum()) if gt.sum() else float("nan")
        for index, name in enumerate(self._class_names):
            results[f"ACC-{name}"] = 100 * float(accuracy[index])
        return results

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """The classes of a label map (H, W) as run-length encodings, in the form of COCO-Stuff's results.

        Returns:
            A dict with file_name, category_id (as in the data set) and segmentation for each class in the map.
        """
        items = []
        for label in np.unique(sem_seg).tolist():
            category = label
            if self._contiguous_id_to_dataset_id is not None:
                assert label in self._contiguous_id_to_dataset_id, (
                    f"label {label} is not in the metadata of {self._dataset_name}"
                )
                category = self._contiguous_id_to_dataset_id[label]
            rle = encode_masks(torch.from_numpy(sem_seg == label)[None])[0]
            rle["counts"] = rle["counts"].decode()
            items.append({"file_name": input_file_name, "category_id": category, "segmentation": rle})
        return items


def _sums(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class: pixels where both agree, pixels of the ground truth, predicted pixels; all without "ignore"."""
    inner = confusion[:-1, :-1].astype(np.float64)
    return inner.diagonal(), inner.sum(axis=0), inner.sum(axis=1)


def _mean(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if len(values) else float("nan")
