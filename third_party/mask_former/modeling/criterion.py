"""The loss of mask classification: cross-entropy, focal and dice loss on matched queries (MaskFormer, section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.utils.comm import get_world_size
from mask_former.modeling.matcher import HungarianMatcher

__all__ = ["SetCriterion", "dice_loss", "sigmoid_focal_loss"]

Indices = Sequence[tuple[Tensor, Tensor]]


def dice_loss(inputs: Tensor, targets: Tensor, num_masks: Tensor | float) -> Tensor:
    """Dice loss (V-Net, arXiv 1606.04797) of mask logits (n, P) with targets (n, P), summed and divided."""
    p = inputs.sigmoid()
    overlap = 2 * (p * targets).sum(1) + 1
    return (1 - overlap / (p.sum(1) + targets.sum(1) + 1)).sum() / num_masks


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, num_masks: Tensor | float, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    """Focal loss (arXiv 1708.02002) of mask logits (n, P): mean over pixels, summed over masks and divided."""
    loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p = inputs.sigmoid()
    wrongness = p + targets - 2 * p * targets  # 1 - p where the target is 1, p where it is 0
    loss = loss * wrongness**gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.mean(1).sum() / num_masks


class SetCriterion(nn.Module):
    """Matches queries to targets and computes ``loss_ce``, ``loss_mask`` and ``loss_dice`` of every decoder layer.

    The losses of auxiliary layer i end in ``_<i>``. They are not weighted; ``weight_dict`` is for the caller.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        losses: Sequence[str],
    ) -> None:
        """Set up the losses.

        Args:
            num_classes: K; class K is "no object".
            weight_dict: factors of the losses by name.
            eos_coef: weight of "no object" in the cross-entropy; 0 leaves queries without a target out.
            losses: of "labels" and "masks".
        """
        super().__init__()
        unknown = set(losses) - {"labels", "masks"}
        if unknown:
            raise ValueError(f"SetCriterion has no losses {sorted(unknown)}; it has 'labels' and 'masks'")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.eos_coef = eos_coef
        self.losses = tuple(losses)
        # Targets per batch, averaged over more than this batch and its processes, for training in parts; or None.
        self.mean_count: Tensor | None = None
        if eos_coef > 0:
            empty_weight = torch.ones(num_classes + 1)
            empty_weight[-1] = eos_coef
            self.register_buffer("empty_weight", empty_weight)

    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Unweighted losses.

        Args:
            outputs: ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, h, w) logits, optionally ``aux_outputs``, a
                list of such dicts, and ``empty_weight`` (K,), weights of the classes in the cross-entropy.
            targets: per image ``labels`` (n,) int64 and ``masks`` (n, H, W), of one size for all images.
        """
        levels = [outputs, *outputs.get("aux_outputs", ())]
        matches = self.matcher.match_levels(levels, targets)
        num_masks = self._count_masks(outputs["pred_masks"].device, targets)
        class_weight = self._class_weight(outputs)
        losses: dict[str, Tensor] = {}
        for number, (level, indices) in enumerate(zip(levels, matches, strict=True)):
            suffix = "" if number == 0 else f"_{number - 1}"
            if "labels" in self.losses:
                losses[f"loss_ce{suffix}"] = self._class_loss(level["pred_logits"], targets, indices, class_weight)
            if "masks" in self.losses:
                mask, dice = self._mask_losses(level["pred_masks"], targets, indices, num_masks)
                losses |= {f"loss_mask{suffix}": mask, f"loss_dice{suffix}": dice}
        return losses

    def _count_masks(self, device: torch.device, targets: Sequence[Mapping[str, Tensor]]) -> Tensor | float:
        """Targets per process, averaged over all; at least 1."""
        if self.mean_count is not None:
            return self.mean_count.clamp(min=1)
        count = float(sum(len(target["labels"]) for target in targets))
        if get_world_size() == 1:
            return max(count, 1.0)
        total = torch.tensor(count, device=device)
        torch.distributed.all_reduce(total)
        return (total / get_world_size()).clamp(min=1)

    def _class_weight(self, outputs: Mapping[str, Any]) -> Tensor | None:
        if self.eos_coef <= 0:
            return None
        given = outputs.get("empty_weight")
        return self.empty_weight if given is None else torch.cat([given.to(self.empty_weight), self.empty_weight[-1:]])

    def _class_loss(
        self, logits: Tensor, targets: Sequence[Mapping[str, Tensor]], indices: Indices, weight: Tensor | None
    ) -> Tensor:
        classes = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        for row, target, (queries, true) in zip(classes, targets, indices, strict=True):
            row[queries.to(row.device)] = target["labels"][true.to(row.device)]
        logits, classes = logits.float().flatten(0, 1), classes.flatten()
        if weight is not None:
            return F.cross_entropy(logits, classes, weight)
        if not any(len(queries) for queries, _ in indices):
            return logits.sum() * 0  # the mean over no queries would be NaN
        return F.cross_entropy(logits, classes, ignore_index=self.num_classes)

    @staticmethod
    def _mask_losses(
        masks: Tensor, targets: Sequence[Mapping[str, Tensor]], indices: Indices, num_masks: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        device = masks.device
        predicted = torch.cat([mask[q.to(device)] for mask, (q, _) in zip(masks, indices, strict=True)]).float()
        if len(predicted) == 0:
            zero = masks.float().sum() * 0
            return zero, zero
        true = torch.cat([t["masks"][j.to(device)] for t, (_, j) in zip(targets, indices, strict=True)]).float()
        predicted = F.interpolate(predicted[:, None], size=true.shape[-2:], mode="bilinear", align_corners=False)
        predicted, true = predicted[:, 0].flatten(1), true.flatten(1)
        return sigmoid_focal_loss(predicted, true, num_masks), dice_loss(predicted, true, num_masks)
