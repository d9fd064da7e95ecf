"""Evaluation of a model over a data set."""

from detectron2.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detectron2.evaluation.coco_evaluation import COCOEvaluator
from detectron2.evaluation.evaluator import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from detectron2.evaluation.lvis_evaluation import LVISEvaluator
from detectron2.evaluation.panoptic_evaluation import COCOPanopticEvaluator
from detectron2.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.sem_seg_evaluation import SemSegEvaluator
from detectron2.evaluation.testing import print_csv_format, verify_results
from detectron2.utils.left_out import left_out

__all__ = [
    "COCOEvaluator",
    "COCOPanopticEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "SemSegEvaluator",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]

__getattr__ = left_out(__name__, "RotatedCOCOEvaluator")
