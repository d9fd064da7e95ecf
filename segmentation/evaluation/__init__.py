"""Evaluation of open-vocabulary segmentation: label maps, pseudo labels and mask classification."""

from segmentation.evaluation.classification import ClassificationEvaluator
from segmentation.evaluation.dense_crf import dense_crf
from segmentation.evaluation.generalized_sem_seg import GeneralizedSemSegEvaluator
from segmentation.evaluation.pseudo_labels import GeneralizedPseudoSemSegEvaluator

__all__ = [
    "ClassificationEvaluator",
    "GeneralizedPseudoSemSegEvaluator",
    "GeneralizedSemSegEvaluator",
    "dense_crf",
]
