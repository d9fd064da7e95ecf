"""Focal losses of centre heatmaps (CornerNet, arXiv 1808.01244, eq. 1, with the options of CenterNet2)."""

import torch
from torch import Tensor

__all__ = ["binary_heatmap_focal_loss", "heatmap_focal_loss"]


def heatmap_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    pos_inds: Tensor,
    labels: Tensor,
    alpha: float = -1,
    beta: float = 4,
    gamma: float = 2,
    sigmoid_clamp: float = 1e-4,
    ignore_high_fp: float = -1.0,
) -> tuple[Tensor, Tensor]:
    """Sums of the loss over positives and over negatives of a heatmap with a channel for each class.

    Args:
        inputs: (M, C) logits; left as they are.
        targets: (M, C) in [0, 1]. The nearer to 1, the less an element counts as a negative.
        pos_inds, labels: (P,) location and class of each positive; one may occur several times.
        alpha: weight of positives, 1 - alpha that of negatives; negative for weights of 1.
        beta, gamma: exponents of ``1 - targets`` and of the error.
        sigmoid_clamp: probabilities stay this far from 0 and 1.
        ignore_high_fp: negatives with a probability from here on don't count, if positive.
    """
    probs = _clamped_sigmoid(inputs, sigmoid_clamp)
    return _focal_sums(probs, targets, probs[pos_inds, labels], alpha, beta, gamma, ignore_high_fp)


def binary_heatmap_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    pos_inds: Tensor,
    alpha: float = -1,
    beta: float = 4,
    gamma: float = 2,
    sigmoid_clamp: float = 1e-4,
    ignore_high_fp: float = -1.0,
) -> tuple[Tensor, Tensor]:
    """`heatmap_focal_loss` of a heatmap without classes: ``inputs`` and ``targets`` are (M,)."""
    probs = _clamped_sigmoid(inputs, sigmoid_clamp)
    return _focal_sums(probs, targets, probs[pos_inds], alpha, beta, gamma, ignore_high_fp)


def _clamped_sigmoid(logits: Tensor, margin: float) -> Tensor:
    return logits.float().sigmoid().clamp(margin, 1 - margin)


def _focal_sums(
    probs: Tensor, targets: Tensor, positives: Tensor, alpha: float, beta: float, gamma: float, ignore_high_fp: float
) -> tuple[Tensor, Tensor]:
    positive = -(torch.log(positives) * (1 - positives) ** gamma).sum()
    losses = torch.log(1 - probs) * probs**gamma * (1 - targets) ** beta
    if ignore_high_fp > 0:
        losses = losses * (probs < ignore_high_fp)
    negative = -losses.sum()
    if alpha >= 0:
        positive, negative = alpha * positive, (1 - alpha) * negative
    return positive, negative
