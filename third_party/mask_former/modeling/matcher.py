"""Bipartite matching of predicted and true masks (DETR, arXiv 2005.12872, section 3.1; MaskFormer, section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

__all__ = ["HungarianMatcher"]

_ALPHA = 0.25  # of the focal cost


class HungarianMatcher(nn.Module):
    """Gives every true mask the query that predicts it at the least total cost; the other queries go without.

    The cost is ``cost_class`` times minus the probability of the class, ``cost_mask`` times the focal loss and
    ``cost_dice`` times the dice loss.
    """

    def __init__(self, cost_class: float = 1, cost_mask: float = 1, cost_dice: float = 1) -> None:
        super().__init__()
        if not (cost_class or cost_mask or cost_dice):
            raise ValueError("HungarianMatcher got only zero costs; at least one must count")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice

    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image the matched queries, ascending, and their targets, two int64 tensors on the CPU.

        Args:
            outputs: ``pred_logits`` (B, Q, K + 1) and ``pred_masks`` (B, Q, h, w) logits.
            targets: per image ``labels`` (n,) and ``masks`` (n, H, W).
        """
        return self.match_levels([outputs], targets)[0]

    @torch.no_grad()
    def match_levels(
        self, levels: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """:meth:`forward` of several decoder layers, for which the costs of all images go to the CPU at once."""
        size = levels[0]["pred_masks"].shape[-2:]
        masks = [resize_masks(target["masks"], size) for target in targets]
        costs = [
            self._weighted(self.costs(logits, mask, target["labels"], true))
            for level in levels
            for logits, mask, target, true in zip(
                level["pred_logits"], level["pred_masks"], targets, masks, strict=True
            )
        ]
        joined = torch.cat(costs, dim=1).cpu()  # (Q, sum of all n): the only wait for the device
        pairs = [_assign(cost) for cost in joined.split([cost.shape[1] for cost in costs], dim=1)]
        return [pairs[start : start + len(targets)] for start in range(0, len(pairs), len(targets))]

    @staticmethod
    def costs(logits: Tensor, mask_logits: Tensor, labels: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Unweighted cost matrices (Q, n) of one image: ``class``, ``focal`` and ``dice``.

        Args:
            logits: (Q, K + 1).
            mask_logits: (Q, h, w).
            labels: (n,) int64.
            masks: (n, h·w) float, 0 or 1.
        """
        x = mask_logits.flatten(1).float()
        p = x.sigmoid()
        hit = _ALPHA * (1 - p) ** 2 * F.softplus(-x)
        miss = (1 - _ALPHA) * p**2 * F.softplus(x)
        focal = (hit @ masks.T + miss @ (1 - masks).T) / x.shape[1]
        dice = 1 - (2 * p @ masks.T + 1) / (p.sum(1)[:, None] + masks.sum(1)[None] + 1)
        return {"class": -logits.float().softmax(1)[:, labels], "focal": focal, "dice": dice}

    def _weighted(self, costs: Mapping[str, Tensor]) -> Tensor:
        return self.cost_mask * costs["focal"] + self.cost_class * costs["class"] + self.cost_dice * costs["dice"]


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h·w) float masks of masks (n, H, W), by the nearest pixel."""
    if len(masks) == 0:
        return torch.zeros(0, size[0] * size[1], device=masks.device)
    return F.interpolate(masks[:, None].float(), size=tuple(size), mode="nearest").flatten(1)


def _assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    queries, targets = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(queries, dtype=torch.int64), torch.as_tensor(targets, dtype=torch.int64)
