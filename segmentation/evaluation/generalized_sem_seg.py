"""The evaluator of open-vocabulary semantic segmentation."""

import json
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image
from torch import Tensor

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.errors import InputError
from segmentation.class_argmax import argmax_over_classes
from segmentation.evaluation.confusion import ConfusionMatrix, mean_iou_of_present_classes, segmentation_metrics
from segmentation.evaluation.label_maps import GroundTruthMaps

__all__ = ["GeneralizedSemSegEvaluator"]

logger = logging.getLogger(__name__)

PREDICTIONS_FILE = "sem_seg_predictions.json"
_PART = f".{PREDICTIONS_FILE}.rank"  # begins the names of the parts of processes; rank and a random number follow
REJECTED = 255  # category id of rejected pixels in the file of predictions


class GeneralizedSemSegEvaluator(DatasetEvaluator):
    """mIoU, fwIoU, mACC and pACC, for all classes and for each of the metadata's ``evaluation_set``.

    See :func:`segmentation.evaluation.confusion.segmentation_metrics` for names and definitions (ZSSeg, section 4.1).
    The confusion matrix is counted on the device of the scores; predictions go to a file of each process and are
    merged at the end.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        post_process_func: Callable[..., Tensor] | None = None,
    ) -> None:
        """Look up ground truth and metadata of a registered data set.

        Args:
            dataset_name: its metadata have stuff_classes, ignore_label and optionally evaluation_set and
                stuff_dataset_id_to_contiguous_id.
            distributed: add up over all processes; else each evaluates its own.
            output_dir: folder for "sem_seg_predictions.json" (run-length encodings by image and class, readable as
                COCO stuff results) and "sem_seg_evaluation.pth"; shared by all processes.
            post_process_func: ``f(scores, image=rgb)`` changes the scores (C, H, W) of an image, an (H, W, 3) uint8
                array.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._ground_truth = GroundTruthMaps(dataset_name)
        self._evaluation_sets: Mapping[str, Sequence[int]] = metadata.get("evaluation_set") or {}
        to_contiguous = metadata.get("stuff_dataset_id_to_contiguous_id")
        self._category_ids = to_contiguous and {label: category for category, label in to_contiguous.items()}
        self._distributed = distributed
        self._output_dir = Path(output_dir) if output_dir else None
        self._post_process = post_process_func
        self._file: IO[str] | None = None
        self._part = ""
        self.reset()

    @property
    def num_classes(self) -> int:
        return self._ground_truth.num_classes

    def reset(self) -> None:
        self._confusion = ConfusionMatrix(self.num_classes)
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned(self._output_dir)
            # A name of its own: nobody takes what an evaluation that was killed left behind for a part of this one.
            name = f"{_PART}{comm.get_rank()}.{uuid.uuid4().hex}"
            self._file = open(self._output_dir / name, "w", encoding="utf-8")  # noqa: SIM115  open over many calls
            self._part = name

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: dicts with the "file_name" of an image of the data set.
            outputs: dicts with "sem_seg", scores (C, H, W) at the size of the label map, or "labels" (H, W).
        Raises:
            InputError: other numbers of classes or pixels, or a label that is no class; names the file.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if "labels" in output:
                labels = output["labels"]
                ground_truth = self._ground_truth[record].to(labels.device)
                self._check_size(record, labels, ground_truth)
            else:
                scores = output["sem_seg"]
                if self._post_process is not None:
                    scores = self._post_process(scores, image=_rgb(record["file_name"]))
                ground_truth = self._ground_truth[record].to(scores.device)
                self._check_shape(record, scores, ground_truth)
                labels = self.predict_labels(scores, ground_truth)
            self._confusion.add(labels, ground_truth)
            if self._file is not None:
                for item in self.encode(labels.cpu().numpy(), record["file_name"]):
                    self._file.write(json.dumps(item) + "\n")

    def predict_labels(self, scores: Tensor, ground_truth: Tensor) -> Tensor:
        """(H, W) labels from scores (C, H, W); ``ground_truth`` is there for evaluators that use what is known."""
        return argmax_over_classes(scores)

    def encode(self, labels: np.ndarray, file_name: str) -> Iterator[dict[str, Any]]:
        """Run-length encodings of a label map (H, W), class by class."""
        for label in np.unique(labels).tolist():
            mask = np.asfortranarray(labels == label, dtype=np.uint8)
            rle = mask_util.encode(mask)
            rle["counts"] = rle["counts"].decode("ascii")
            yield {"file_name": file_name, "category_id": self._category_id(label), "segmentation": rle}

    def _category_id(self, label: int) -> int:
        if label == self.num_classes:
            return REJECTED
        if not self._category_ids:
            return label
        if label not in self._category_ids:
            raise InputError(
                f"class {label} of data set {self._ground_truth.dataset_name} has no category id in its "
                "stuff_dataset_id_to_contiguous_id; add it to the metadata"
            )
        return self._category_ids[label]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"sem_seg": {metric: percent}}`` on the main process, None on the others."""
        if self._file is not None:
            self._file.close()
            self._file = None
        counts, names = self._confusion.counts(), [self._part]
        if self._distributed:
            gathered = comm.all_gather((counts, self._part))
            if not comm.is_main_process():
                return None
            parts, names = map(list, zip(*gathered, strict=True))
            counts = sum(parts[1:], parts[0])
        self.confusion_matrix = counts
        results = segmentation_metrics(counts, self._ground_truth.class_names, self._evaluation_sets)
        if self._output_dir is not None:
            self._merge_predictions(self._output_dir / PREDICTIONS_FILE, [self._output_dir / name for name in names])
            with atomic_writer(self._output_dir / "sem_seg_evaluation.pth") as file:
                torch.save(results, file)
        logger.info("mIoU over present classes only, as detectron2 has it: %.4f", mean_iou_of_present_classes(counts))
        logger.info("%s", {name: value for name, value in results.items() if not name.startswith(("IoU-", "ACC-"))})
        return OrderedDict({"sem_seg": results})

    def _remove_abandoned(self, folder: Path) -> None:
        """Remove what killed evaluations left: parts of this rank, and of ranks that this run does not have."""
        for path in folder.glob(f"{_PART}*.*"):
            rank = path.name.removeprefix(_PART).partition(".")[0]
            if rank.isdecimal() and (int(rank) == comm.get_rank() or int(rank) >= comm.get_world_size()):
                path.unlink(missing_ok=True)

    def _merge_predictions(self, path: Path, parts: Sequence[Path]) -> None:
        """Write the parts of all processes to one file, and delete them.

        Raises:
            InputError: a part is not there.
        """
        missing = next((part for part in parts if not part.exists()), None)
        if missing is not None:
            raise InputError(
                f"{missing}, the predictions of one process, cannot be seen by the first; set OUTPUT_DIR to a folder "
                "that all machines share"
            )
        separator = "["
        with atomic_writer(path, "w") as target:
            for part in parts:
                with open(part, encoding="utf-8") as lines:
                    for line in lines:
                        target.write(separator + line.rstrip("\n"))
                        separator = ",\n"
            target.write("]" if separator != "[" else "[]")
        for part in parts:
            os.unlink(part)

    def _check_shape(self, record: dict[str, Any], scores: Tensor, ground_truth: Tensor) -> None:
        if len(scores) != self.num_classes:
            raise InputError(
                f"the model scores {len(scores)} classes, data set {self._ground_truth.dataset_name} has "
                f"{self.num_classes}; give the model this vocabulary"
            )
        self._check_size(record, scores, ground_truth)

    def _check_size(self, record: dict[str, Any], found: Tensor, ground_truth: Tensor) -> None:
        if found.shape[-2:] != ground_truth.shape:
            raise InputError(
                f"label map {self._ground_truth.file_of(record['file_name'])} has the size (height, width) "
                f"{tuple(ground_truth.shape)}, but {record['file_name']} was predicted with {tuple(found.shape[-2:])}"
            )


def _rgb(file_name: str) -> np.ndarray:
    with Image.open(file_name) as image:
        return np.asarray(image.convert("RGB"))
