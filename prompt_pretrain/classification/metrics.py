"""Classification metrics in percent, kept as ranked classes and labels only, never as logits."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from prompt_pretrain import distributed
from prompt_pretrain.errors import InputError

TOP_K = 5


def top_classes(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest scores of each row and their columns, best first; among equal scores the lowest column first.

    ``torch.topk`` promises no order among ties, and duplicate class names tie exactly.

    Args:
        scores: (B, C) finite.
        k: at most C columns are returned.
    Returns:
        (B, min(k, C)) values and int64 columns.
    """
    scores = scores.clone()
    columns = []
    values = []
    for _ in range(min(k, scores.shape[1])):
        best = scores.argmax(dim=1, keepdim=True)  # the first of several maxima
        columns.append(best)
        values.append(scores.gather(1, best))
        scores.scatter_(1, best, -torch.inf)
    if not columns:
        return scores[:, :0], scores.new_zeros((len(scores), 0), dtype=torch.int64)
    return torch.cat(values, dim=1), torch.cat(columns, dim=1)


class RunningTopK:
    """Top-k over columns that arrive in chunks from left to right, with the tie rule of :func:`top_classes`."""

    def __init__(self, k: int = TOP_K) -> None:
        self.k = k
        self.columns: Tensor | None = None  # (B, k) int64, best first
        self._values: Tensor | None = None
        self._seen = 0

    def update(self, scores: Tensor) -> None:
        """Take the next (B, C) columns."""
        values, columns = top_classes(scores, self.k)
        columns = columns + self._seen
        self._seen += scores.shape[1]
        if self.columns is not None and self._values is not None:
            # Earlier columns stand first, so a tie with a later chunk keeps the lower one.
            values = torch.cat([self._values, values], dim=1)
            columns = torch.cat([self.columns, columns], dim=1)
            values, order = top_classes(values, self.k)
            columns = columns.gather(1, order)
        self._values, self.columns = values, columns


@dataclass(frozen=True)
class ClassResult:
    """Counts of one class that occurs in the labels; ratios in percent."""

    label: int
    images: int
    correct: int
    predicted: int

    @property
    def accuracy(self) -> float:
        return 100.0 * self.correct / self.images

    @property
    def f1(self) -> float:
        return 200.0 * self.correct / (self.images + self.predicted)


@dataclass
class ClassificationMetrics:
    """Collects ranked predictions and labels batch by batch; a few bytes per image.

    Args:
        num_classes: N; labels must lie in 0..N-1.
    """

    num_classes: int
    _ranked: list[np.ndarray] = field(default_factory=list, repr=False)
    _labels: list[np.ndarray] = field(default_factory=list, repr=False)
    _cosines: list[np.ndarray] = field(default_factory=list, repr=False)

    def update(self, ranked: Tensor, labels: Tensor, label_cosines: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            ranked: (B, k) class ids, best first; k may be 1.
            labels: (B,) class ids.
            label_cosines: (B,) cosine of each image with its own class, for alignment; give it always or never.
        Raises:
            InputError: a label outside the N classes.
        """
        labels_np = labels.cpu().numpy().astype(np.int32)
        if len(labels_np) and not (labels_np.min() >= 0 and labels_np.max() < self.num_classes):
            wrong = labels_np.max() if labels_np.max() >= self.num_classes else labels_np.min()
            raise InputError(
                f"label {wrong} found, but there are {self.num_classes} classes (0 to {self.num_classes - 1}); "
                "evaluate with the class names of this data set, in its order"
            )
        self._ranked.append(ranked.cpu().numpy().astype(np.int32))
        self._labels.append(labels_np)
        if label_cosines is not None:
            self._cosines.append(label_cosines.float().cpu().numpy())

    def gather(self, length: int) -> None:
        """Replace the content by all processes' results in rank order, cut to the ``length`` images there are.

        The evaluation sampler hands out contiguous chunks and repeats the last image to fill up, so the repetitions
        stand at the end. Every process ends with the same content.
        """
        parts = distributed.gather_objects((self.ranked, self.labels, self.label_cosines))
        parts = [part for part in parts if len(part[1])]
        if parts:
            ranked, labels, cosines = (np.concatenate(column)[:length] for column in zip(*parts, strict=True))
            self._ranked, self._labels, self._cosines = [ranked], [labels], [cosines]

    def restricted(self, classes: np.ndarray) -> "ClassificationMetrics":
        """Only the images whose label is one of ``classes``."""
        inside = np.isin(self.labels, classes)
        cosines = self.label_cosines
        return ClassificationMetrics(
            self.num_classes,
            [self.ranked[inside]],
            [self.labels[inside]],
            [cosines[inside] if len(cosines) else cosines],
        )

    @property
    def ranked(self) -> np.ndarray:
        """(n, k) int32 class ids, best first."""
        return np.concatenate(self._ranked) if self._ranked else np.zeros((0, 1), np.int32)

    @property
    def labels(self) -> np.ndarray:
        """(n,) int32."""
        return np.concatenate(self._labels) if self._labels else np.zeros(0, np.int32)

    @property
    def label_cosines(self) -> np.ndarray:
        """(n,) float32, or empty when none were given."""
        return np.concatenate(self._cosines) if self._cosines else np.zeros(0, np.float32)

    def per_class(self) -> list[ClassResult]:
        """Results of the classes that occur in the labels, in label order."""
        labels, predicted = self.labels, self.ranked[:, 0]
        counts = np.bincount(labels, minlength=self.num_classes)
        hits = np.bincount(labels[labels == predicted], minlength=self.num_classes)
        guesses = np.bincount(predicted, minlength=self.num_classes)
        return [
            ClassResult(int(label), int(counts[label]), int(hits[label]), int(guesses[label]))
            for label in np.flatnonzero(counts)
        ]

    def compute(self) -> dict[str, float]:
        """``accuracy``, ``error_rate``, ``macro_f1``, ``perclass_accuracy``, ``top5_accuracy``, all in percent.

        Macro F1 and per-class accuracy average over the classes that occur in the labels. Without any image every
        value is NaN.
        """
        labels, ranked = self.labels, self.ranked
        if not len(labels):
            nan = float("nan")
            names = ("accuracy", "error_rate", "macro_f1", "perclass_accuracy", "top5_accuracy")
            return dict.fromkeys(names, nan)
        classes = self.per_class()
        accuracy = 100.0 * float(np.mean(ranked[:, 0] == labels))
        return {
            "accuracy": accuracy,
            "error_rate": 100.0 - accuracy,
            "macro_f1": float(np.mean([c.f1 for c in classes])),
            "perclass_accuracy": float(np.mean([c.accuracy for c in classes])),
            "top5_accuracy": 100.0 * float(np.mean((ranked == labels[:, None]).any(axis=1))),
        }
