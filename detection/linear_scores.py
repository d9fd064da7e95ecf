"""Logits that are a product of region features and class columns, evaluated for some classes at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Classes", "EqualWeights", "LinearScores", "log_normalisers", "mean_probabilities"]

Classes = slice | Tensor  # of columns: a range, or (n,) ascending indices


@dataclass(frozen=True)
class LinearScores:
    """Logits of R regions: ``features @ weight + bias``.

    Attributes:
        features: (R, D); without ``weight`` the logits (R, C + 1) themselves.
        weight: (D, C + 1), background last.
        bias: (1,) for all, (C + 1,) one each, or None.
    """

    features: Tensor
    weight: Tensor | None
    bias: Tensor | None

    @property
    def num_columns(self) -> int:
        """C + 1."""
        return (self.features if self.weight is None else self.weight).shape[1]

    def logits(self, classes: Classes) -> Tensor:
        """(R, n) float32 logits of the classes, a tensor of their own."""
        if self.weight is None:
            return self.features[:, classes].float().clone()
        weight = self.weight[:, classes] if isinstance(classes, slice) else self.weight.index_select(1, classes)
        logits = (self.features @ weight).float()
        if self.bias is not None:
            logits += self.bias if len(self.bias) == 1 else self.bias[classes]
        return logits


def log_normalisers(stages: Sequence[LinearScores], classes_per_chunk: int) -> list[Tensor]:
    """Per stage (R, 1) the logarithm of the softmax's denominator, over all classes and background."""
    normalisers = []
    for stage in stages:
        total = stage.features.new_full((len(stage.features), 1), -torch.inf, dtype=torch.float32)
        for start in range(0, stage.num_columns, classes_per_chunk):
            part = stage.logits(slice(start, start + classes_per_chunk)).logsumexp(dim=1, keepdim=True)
            total = torch.logaddexp(total, part)
        normalisers.append(total)
    return normalisers


def mean_probabilities(
    stages: Sequence[LinearScores], classes: Classes, normalisers: Sequence[Tensor] | None
) -> Tensor:
    """(R, n) probabilities of the classes, the mean over stages: sigmoids, or softmax where there are normalisers."""
    total = None
    for stage, normaliser in zip(stages, normalisers or [None] * len(stages), strict=True):
        logits = stage.logits(classes)
        probs = logits.sigmoid_() if normaliser is None else logits.sub_(normaliser).exp_()
        total = probs if total is None else total.add_(probs)
    return total.div_(len(stages)) if len(stages) > 1 else total


class EqualWeights:
    """Gives stages of equal weights one and the same, so that work on it is done once.

    The stages of a cascade hold a copy of the class embeddings each. Whether they are equal is found out once, and
    again when one has changed: comparing costs as much as it saves.
    """

    def __init__(self) -> None:
        self._key: list[tuple[int, int]] | None = None
        self._equal = False

    def __call__(self, stages: Sequence[LinearScores]) -> list[LinearScores]:
        """``stages`` with the weight of the first, if all have an equal one."""
        weights = [stage.weight for stage in stages]
        if any(weight is None or weight.is_inference() for weight in weights):
            return list(stages)
        key = [(weight.data_ptr(), weight._version) for weight in weights]
        if key != self._key:
            first = weights[0]
            self._equal = all(each.shape == first.shape and torch.equal(each, first) for each in weights[1:])
            self._key = key
        return [replace(stage, weight=weights[0]) for stage in stages] if self._equal else list(stages)
