"""Evaluators of Detic that detectron2 does not have."""

from detection.evaluation.coco_zeroshot import CustomCOCOEvaluator
from detection.evaluation.oid import OIDEvaluator

__all__ = ["CustomCOCOEvaluator", "OIDEvaluator"]
