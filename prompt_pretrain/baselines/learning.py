"""The loss of a learner's step and the loop that trains it; the loop itself is that of POMP."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from prompt_pretrain.baselines.files import save_learner
from prompt_pretrain.baselines.learners import Classes, Learner
from prompt_pretrain.label_hierarchy import LabelHierarchy, cross_entropy
from prompt_pretrain.pretrain import PromptPretrainer
from prompt_pretrain.prompt_loss import BatchLoss, StepRows, summarize


class LearnerLoss:
    """Cross entropy over all classes, and what the learner adds to it.

    Args:
        classes: the vocabulary, with the hierarchy's extra names behind it.
        hierarchy: targets; None takes the label alone.
    """

    def __init__(self, learner: Learner, classes: Classes, hierarchy: LabelHierarchy | None = None) -> None:
        self.learner, self.classes, self.hierarchy = learner, classes, hierarchy

    def __call__(self, inputs: Tensor, rows: StepRows, *, ok: Tensor | None = None) -> BatchLoss:
        """The loss of this process's part of a step, from images or features as the learner takes them."""
        logits, extra = self.learner.training_step(inputs, self.classes)
        labels = rows.labels[rows.own].to(logits.device)
        outcome = summarize(*cross_entropy(logits, labels, self.hierarchy), ok)
        return outcome if extra is None else replace(outcome, loss=outcome.loss + extra)


class LearnerTrainer(PromptPretrainer):
    """Trains a :class:`~prompt_pretrain.baselines.learners.Learner`; ``metadata`` travels with its files.

    The other arguments are those of :class:`~prompt_pretrain.pretrain.PromptPretrainer`.
    """

    def __init__(self, cfg: Any, learner: Learner, *args: Any, metadata: Mapping[str, Any], **options: Any) -> None:
        super().__init__(cfg, learner, *args, **options)
        self.metadata = dict(metadata)

    def outcome(self, image_features: Tensor, rows: StepRows, ok: Tensor | None) -> BatchLoss:
        return self.loss(image_features, rows, ok=ok)

    def save(self, path: Path, parameters: Mapping[str, Tensor], epoch: int, accuracy: float | None) -> None:
        save_learner(path, parameters, self.metadata, epoch=epoch, val_result=accuracy)
