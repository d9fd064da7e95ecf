"""Pseudo labels for self-training: predicted on training images where no label of a seen class is known."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detectron2.data import MetadataCatalog
from prompt_pretrain.errors import InputError
from segmentation.class_argmax import max_over_classes
from segmentation.evaluation.generalized_sem_seg import GeneralizedSemSegEvaluator

__all__ = ["GeneralizedPseudoSemSegEvaluator"]


class GeneralizedPseudoSemSegEvaluator(GeneralizedSemSegEvaluator):
    """Predicts unseen classes where the ground truth names no seen class, and keeps the ground truth elsewhere.

    The file of predictions then holds the labels to train on (ZSSeg, self-training).
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        with_prior: bool = True,
        reject_threshold: float = 0.0,
        post_process_func: Callable[..., Tensor] | None = None,
    ) -> None:
        """As :class:`GeneralizedSemSegEvaluator`; the metadata also have ``trainable_flag``, 1 for seen classes.

        Args:
            with_prior: softmax over classes, then only unseen ones may be predicted; else the scores as they are.
            reject_threshold: pixels with a smaller maximum get no label (255 in the file).
        Raises:
            InputError: no trainable_flag, or not one for each class.
        """
        super().__init__(dataset_name, distributed, output_dir, post_process_func=post_process_func)
        flags: Any = MetadataCatalog.get(dataset_name).get("trainable_flag")
        if flags is None or len(flags) != self.num_classes:
            raise InputError(
                f"pseudo labels need metadata.trainable_flag of {dataset_name}, 1 for seen and 0 for unseen classes, "
                f"for each of its {self.num_classes} classes; found {None if flags is None else len(flags)}"
            )
        self._seen = torch.tensor(list(flags), dtype=torch.float32)
        self._with_prior = with_prior
        self._reject_threshold = reject_threshold

    def predict_labels(self, scores: Tensor, ground_truth: Tensor) -> Tensor:
        seen = self._seen.to(scores.device)
        if self._with_prior:
            scores = scores.softmax(0) * (1 - seen)[:, None, None]
        confidence, labels = max_over_classes(scores)
        labels[confidence < self._reject_threshold] = self.num_classes
        known = torch.cat([seen, seen.new_zeros(1)])[ground_truth] > 0  # an ignored pixel is not known
        return torch.where(known, ground_truth, labels)
