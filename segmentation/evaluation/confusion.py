"""Confusion matrices of label maps, and the metrics of open-vocabulary segmentation that follow from them."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["ConfusionMatrix", "harmonic_mean", "mean_iou_of_present_classes", "segmentation_metrics"]


class ConfusionMatrix:
    """Pixel counts (C + 1, C + 1), row = prediction, column = ground truth; the last index means "ignored".

    Counting happens where the label maps are; only the sum is kept.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts: Tensor | None = None

    def add(self, prediction: Tensor, ground_truth: Tensor) -> None:
        """Count the pixels of two integer maps of one shape and device, with values from 0 to C."""
        side = self.num_classes + 1
        index = ground_truth.long().add(prediction.long(), alpha=side).flatten()
        counts = torch.bincount(index, minlength=side**2)
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts

    def counts(self) -> Tensor:
        """(C + 1, C + 1) int64 on the CPU."""
        side = self.num_classes + 1
        if self._counts is None:
            return torch.zeros(side, side, dtype=torch.int64)
        return self._counts.cpu().view(side, side)


def segmentation_metrics(
    counts: Tensor, class_names: Sequence[str], evaluation_sets: Mapping[str, Sequence[int]] | None = None
) -> dict[str, float]:
    """Metrics in percent under the names of ZSSeg.

    A class that is predicted but absent counts as 0 in ``mIoU`` and one that is neither is left out, as ZSSeg has it
    (detectron2 leaves out both, see :func:`mean_iou_of_present_classes`). For every evaluation set there are
    ``mIoU-<set>`` and ``pAcc-<set>``, the same over all other classes under ``-un<set>``, and the harmonic mean of the
    two mIoU, ``hIoU-<set>``: the set "base" are the seen classes.

    Args:
        counts: (C + 1, C + 1) pixel counts, see :class:`ConfusionMatrix`.
        class_names: C names.
        evaluation_sets: class ids of each set.
    """
    valid = counts[:-1, :-1].double()
    true_positive, predicted, truth = valid.diagonal(), valid.sum(1), valid.sum(0)
    present, counted = truth > 0, (truth + predicted) > 0
    nan = torch.full_like(truth, math.nan)
    accuracy = torch.where(present, true_positive / truth, nan)
    iou = torch.where(present, true_positive / (truth + predicted - true_positive), nan)

    def mean_iou(members: Tensor) -> float:
        return _ratio(iou[members & present].sum(), (members & counted).sum())

    def pixel_accuracy(members: Tensor) -> float:
        return _ratio(true_positive[members].sum(), truth[members].sum())

    everything = torch.ones_like(present)
    results = {
        "mIoU": mean_iou(everything),
        "fwIoU": _ratio((iou * truth)[present].sum(), truth.sum()),
    }
    results |= {f"IoU-{name}": 100 * float(value) for name, value in zip(class_names, iou, strict=True)}
    results |= {"mACC": _ratio(accuracy[present].sum(), present.sum()), "pACC": pixel_accuracy(everything)}
    results |= {f"ACC-{name}": 100 * float(value) for name, value in zip(class_names, accuracy, strict=True)}
    for name, indices in (evaluation_sets or {}).items():
        inside = torch.zeros_like(present)
        inside[list(indices)] = True
        for prefix, members in (("", inside), ("un", ~inside)):
            results[f"mIoU-{prefix}{name}"] = mean_iou(members)
            results[f"pAcc-{prefix}{name}"] = pixel_accuracy(members)
        results[f"hIoU-{name}"] = harmonic_mean(results[f"mIoU-{name}"], results[f"mIoU-un{name}"])
    return results


def mean_iou_of_present_classes(counts: Tensor) -> float:
    """detectron2's mIoU in percent: the mean over the classes that occur in the ground truth."""
    valid = counts[:-1, :-1].double()
    true_positive, union = valid.diagonal(), valid.sum(1) + valid.sum(0) - valid.diagonal()
    present = valid.sum(0) > 0
    return _ratio((true_positive / union)[present].sum(), present.sum())


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b); 0 if either is 0."""
    return 0.0 if 0.0 in (first, second) else 2 / (1 / first + 1 / second)


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    """In percent; NaN for nothing of nothing."""
    return 100 * float(numerator) / float(denominator) if float(denominator) else math.nan
