"""Assigning a ground-truth object, or none, to every prediction (boxes, anchors, proposals)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Matcher:
    """Gives each prediction its best ground truth and a label according to the quality of that match.

    Labels: 1 matched (foreground), 0 not matched (background), -1 ignored.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        """
        Args:
            thresholds: ascending and positive; they part qualities into bins [t_i, t_i+1), the first and last of which
                reach to infinity.
            labels: one per bin, so one more than thresholds.
            allow_low_quality_matches: also label 1 the best predictions of every ground truth, however bad they are.
        """
        thresholds = list(thresholds)
        labels = list(labels)
        if not thresholds or thresholds[0] <= 0 or sorted(thresholds) != thresholds:
            raise ValueError(f"IOU_THRESHOLDS must be positive and ascending, got {thresholds}")
        if any(label not in (-1, 0, 1) for label in labels):
            raise ValueError(f"IOU_LABELS must be -1, 0 or 1, got {labels}")
        if len(labels) != len(thresholds) + 1:
            raise ValueError(f"{len(thresholds)} IOU_THRESHOLDS need {len(thresholds) + 1} IOU_LABELS, got {labels}")
        self.thresholds = [-math.inf, *thresholds, math.inf]
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The best ground truth of each prediction, and its label.

        Args:
            match_quality_matrix: (G, P) values of at least 0, such as IoU, of G ground truths and P predictions.
        Returns:
            (P,) int64 index into the ground truths, and (P,) int8 label. Without ground truths the index is 0 and the
            label that of the lowest bin.
        """
        quality = match_quality_matrix
        assert quality.dim() == 2, f"match quality must be (G, P), got {tuple(quality.shape)}"
        if quality.numel() == 0:
            count = quality.shape[1]
            return (
                quality.new_zeros(count, dtype=torch.int64),
                quality.new_full((count,), self.labels[0], dtype=torch.int8),
            )
        assert (quality >= 0).all(), "match quality holds negative or NaN values; are there invalid boxes?"
        best, matches = quality.max(dim=0)
        labels = torch.full_like(matches, self.labels[0], dtype=torch.int8)
        for threshold, label in zip(self.thresholds[1:-1], self.labels[1:], strict=True):
            labels.masked_fill_(best >= threshold, label)
        if self.allow_low_quality_matches:
            # Every prediction that attains the best quality of some ground truth, ties included. Its own match stays:
            # that may be another ground truth, which it fits still better.
            attains = quality == quality.amax(dim=1, keepdim=True)
            labels.masked_fill_(attains.any(dim=0), 1)
        return matches, labels
