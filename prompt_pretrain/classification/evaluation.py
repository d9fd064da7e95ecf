"""Zero-shot classification of image features by class features, for vocabularies of any size."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_pretrain.classification.metrics import TOP_K, ClassificationMetrics, ClassResult, RunningTopK
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import find_ties

logger = logging.getLogger(__name__)

# Rows of class features compared at once: (256, 8192) float32 scores are 8 MB, whatever N is.
CLASS_CHUNK = 8192
IMAGE_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """What one set of class features achieves on one set of images.

    ``metrics``: percentages ``accuracy`` (overall top-1), ``error_rate``, ``macro_f1``, ``perclass_accuracy``,
    ``top5_accuracy`` and ``tie_ceiling``, and ``alignment`` (see :mod:`prompt_pretrain.analysis`).
    ``groups``: per named group of classes the same metrics with only the group's classes as candidates, and
    ``accuracy_all_classes`` with every class as candidate, over the images of the group's classes.
    """

    name: str
    num_images: int
    num_classes: int
    metrics: Mapping[str, float]
    per_class: tuple[ClassResult, ...]
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ranked: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.int32), repr=False)  # (n, k) best first
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), repr=False)  # (n,)

    @property
    def accuracy(self) -> float:
        """Overall top-1 in percent."""
        return self.metrics["accuracy"]

    def as_json(self, class_names: Sequence[str] | None = None, *, per_class: bool = False) -> dict[str, Any]:
        """Plain values for a json file; ``per_class`` adds one record per class that occurs."""
        result: dict[str, Any] = {
            "name": self.name,
            "num_images": self.num_images,
            "num_classes": self.num_classes,
            "metrics": dict(self.metrics),
        }
        if self.groups:
            result["groups"] = {group: dict(metrics) for group, metrics in self.groups.items()}
        if per_class:
            result["per_class"] = [
                {
                    "label": c.label,
                    **({"class_name": class_names[c.label]} if class_names is not None else {}),
                    "images": c.images,
                    "accuracy": c.accuracy,
                    "f1": c.f1,
                }
                for c in self.per_class
            ]
        return result


def feature_batches(
    features: np.ndarray | Tensor,
    labels: np.ndarray | Tensor | Sequence[int],
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    batch_size: int = IMAGE_BATCH,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of stored image features, float32 on the CPU, read piece by piece (a memory map stays on disk).

    Args:
        features: (n, D), or (n, V, D) of which the first view is taken; any floating type.
        labels: (n,) class ids.
        indices: which rows, in which order (a process's share); default all.
    """
    order = np.arange(len(features)) if indices is None else np.asarray(indices, dtype=np.int64)
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = features[torch.from_numpy(rows)] if isinstance(features, Tensor) else np.asarray(features[rows])
        batch = torch.as_tensor(batch).float()
        yield (batch[:, 0] if batch.ndim == 3 else batch), labels[torch.from_numpy(rows)]


@torch.no_grad()
def evaluate(
    class_features: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    name: str = "",
    class_names: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    num_images: int | None = None,
    class_chunk: int = CLASS_CHUNK,
) -> Evaluation:
    """Classify every image by the class of largest cosine similarity, lowest index on ties.

    Classes with one name and one feature tie always, and the first of them wins, so the others are out of reach:
    ``tie_ceiling`` is the accuracy of a classifier that errs nowhere else. Memory does not depend on N, apart from
    ``class_features`` itself. The temperature plays no part: it changes no order.

    Args:
        class_features: (N, D), normalised here, on the device to compute on.
        batches: image features (B, D), normalised here, and labels (B,); with several processes each gives its share.
        class_names: the N names, from which ties are known; without them exact ties still go to the lowest index.
        groups: for each name of a group its class ids (base and novel, say).
        num_images: with several processes, the number of images there are in all; repetitions behind it are cut.
        class_chunk: candidates compared at once.
    Raises:
        InputError: widths differ, a value is not finite, a label or group member is out of range, no image at all,
            or a wrong count of names.
    """
    classes = _Classes(class_features, class_names, class_chunk)
    everything = torch.arange(classes.count)
    members = {group: _checked_members(group, ids, classes.count) for group, ids in (groups or {}).items()}
    candidates: dict[str | None, Tensor] = {None: everything}
    candidates.update(members)
    collected = {group: ClassificationMetrics(classes.count) for group in candidates}
    for features, labels in batches:
        images = classes.normalized_images(features)
        cosines = (images * classes.weights[labels.clamp(0, classes.count - 1).to(images.device)]).sum(dim=1)
        for group, ids in candidates.items():
            collected[group].update(classes.rank(images, ids), labels, cosines)
    if num_images is not None:
        for metrics in collected.values():
            metrics.gather(num_images)
    overall = collected[None]
    if not len(overall.labels):
        raise InputError("no image to evaluate: the chosen split is empty; choose another one or another data set")
    group_metrics = {}
    for group, ids in members.items():
        inside = collected[group].restricted(ids.numpy())
        if not len(inside.labels):
            logger.warning("no image of the group %r; it is left out", group)
            continue
        group_metrics[group] = classes.summarize(inside) | {
            "accuracy_all_classes": overall.restricted(ids.numpy()).compute()["accuracy"]
        }
    return Evaluation(
        name=name,
        num_images=len(overall.labels),
        num_classes=classes.count,
        metrics=classes.summarize(overall),
        per_class=tuple(overall.per_class()),
        groups=group_metrics,
        ranked=overall.ranked,
        labels=overall.labels,
    )


def harmonic_mean(base: float, novel: float) -> float:
    """Harmonic mean of two accuracies; 0 when both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


class _Classes:
    """Normalised class features, with columns of tied names computed once so that they tie exactly."""

    def __init__(self, class_features: Tensor, class_names: Sequence[str] | None, chunk: int) -> None:
        self.count, self.width = class_features.shape
        if class_names is not None and len(class_names) != self.count:
            raise InputError(
                f"{self.count} class features for {len(class_names)} class names; give features made for this list"
            )
        if not torch.isfinite(class_features).all():
            raise InputError("class features hold values that are not finite; encode them again, in float32")
        self.weights = F.normalize(class_features.float(), dim=1)
        self.chunk = chunk
        self.first = _first_of_tie(self.weights, class_names)
        # A matrix product may round equal columns differently; equal rows make no difference to their order then.
        tied = torch.nonzero(self.first != torch.arange(self.count)).flatten()
        self.tied_firsts, self.tied_column = torch.unique(self.first[tied], return_inverse=True)
        self.tied = tied

    def normalized_images(self, features: Tensor) -> Tensor:
        if features.shape[1] != self.width:
            raise InputError(
                f"image features have width {features.shape[1]} but class features {self.width}; "
                "both must come from one CLIP"
            )
        images = F.normalize(features.to(self.weights.device, torch.float32), dim=1)
        if not torch.isfinite(images).all():
            raise InputError("image features hold values that are not finite; delete the feature cache and rebuild it")
        return images

    def rank(self, images: Tensor, candidates: Tensor, k: int = TOP_K) -> Tensor:
        """(B, k) class ids among the sorted ``candidates``, best first."""
        running = RunningTopK(k)
        for part in candidates.split(self.chunk):
            running.update(self._scores(images, part))
        assert running.columns is not None
        return candidates.to(images.device)[running.columns]

    def _scores(self, images: Tensor, ids: Tensor) -> Tensor:
        scores = images @ self.weights[ids.to(images.device)].T  # (B, C)
        if len(self.tied):
            shared = images @ self.weights[self.tied_firsts.to(images.device)].T
            for classes, columns in (
                (self.tied_firsts, torch.arange(len(self.tied_firsts))),
                (self.tied, self.tied_column),
            ):
                place = torch.searchsorted(ids, classes).clamp(max=len(ids) - 1)
                here = ids[place] == classes
                scores[:, place[here].to(images.device)] = shared[:, columns[here].to(images.device)]
        return scores

    def summarize(self, collected: ClassificationMetrics) -> dict[str, float]:
        reachable = self.first.numpy()[collected.labels] == collected.labels
        return collected.compute() | {
            "tie_ceiling": 100.0 * float(np.mean(reachable)),
            "alignment": float(np.mean(2.0 - 2.0 * collected.label_cosines.astype(np.float64))),
        }


def _first_of_tie(weights: Tensor, class_names: Sequence[str] | None) -> Tensor:
    """(N,) for each class the lowest class of the same name and feature (class-specific prompts tell names apart)."""
    first = torch.arange(len(weights))
    for ids in find_ties(class_names).values() if class_names is not None else ():
        for member in ids[1:]:
            same = next((i for i in ids if i < member and _equal(weights[i], weights[member])), member)
            first[member] = first[same]
    return first


def _equal(one: Tensor, other: Tensor) -> bool:
    # Encoders round equal prompts differently in the last bits when they stand at different places of a batch.
    return bool(torch.dot(one, other) > 1 - 1e-5)


def _checked_members(group: str, ids: Sequence[int], num_classes: int) -> Tensor:
    members = torch.unique(torch.as_tensor(list(ids), dtype=torch.int64))
    if not len(members):
        raise InputError(f"the group {group!r} has no class; leave it out or name its classes")
    for wrong in (int(members[0]), int(members[-1])):
        if not 0 <= wrong < num_classes:
            raise InputError(f"the group {group!r} names class {wrong}, but there are {num_classes} classes (from 0)")
    return members
