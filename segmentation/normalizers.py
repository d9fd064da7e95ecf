"""The count that losses of segmentation divide by, over all parts of a step (:mod:`prompt_pretrain.accumulation`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask_former.modeling.criterion import SetCriterion
from prompt_pretrain.accumulation import Counter

__all__ = ["find_counters"]


def find_counters(model: nn.Module) -> list[Counter]:
    """Those of the losses of ``model`` that are means over processes: of MaskFormer's masks."""
    return [_MaskCounter(model, module) for module in model.modules() if isinstance(module, SetCriterion)]


class _MaskCounter:
    def __init__(self, model: nn.Module, criterion: SetCriterion) -> None:
        self._model, self._criterion = model, criterion

    def count(self, batch: Sequence[Mapping[str, Any]]) -> Tensor:
        """Masks of the ground truth."""
        return torch.tensor([float(sum(len(x["instances"]) for x in batch))], device=self._model.device)

    def set_means(self, means: Tensor | None) -> None:
        self._criterion.mean_count = None if means is None else means[0]
