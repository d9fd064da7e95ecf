"""Counts that losses of detection divide by, over all parts of a step (:mod:`prompt_pretrain.accumulation`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from centernet.modeling.dense_heads.centernet import CenterNet
from detection.deformable_detr.criterion import SetCriterion
from detectron2.structures import Boxes, Instances
from prompt_pretrain.accumulation import Counter

__all__ = ["find_counters"]

Batch = Sequence[Mapping[str, Any]]


def find_counters(model: nn.Module) -> list[Counter]:
    """Those of the losses of ``model`` that are means over processes.

    The losses of box and mask heads are means over the regions of a process, as published, so parts need no count.
    """
    counters: list[Counter] = []
    for module in model.modules():
        if isinstance(module, CenterNet) and not module.no_reduce:
            counters.append(_CenterNetCounter(model, module))
        elif isinstance(module, SetCriterion):
            counters.append(_ObjectCounter(model, module))
    return counters


class _CenterNetCounter:
    def __init__(self, model: nn.Module, head: CenterNet) -> None:
        self._model, self._head = model, head

    def count(self, batch: Batch) -> Tensor:
        """Positives and weights of locations."""
        images = self._model.preprocess_image(batch)  # type: ignore[operator]
        device = images.tensor.device
        instances = [_ground_truth(entry, size, device) for entry, size in zip(batch, images.image_sizes, strict=True)]
        return self._head.count_targets(instances, tuple(images.tensor.shape[-2:]))

    def set_means(self, means: Tensor | None) -> None:
        self._head.mean_counts = means


class _ObjectCounter:
    def __init__(self, model: nn.Module, criterion: SetCriterion) -> None:
        self._model, self._criterion = model, criterion

    def count(self, batch: Batch) -> Tensor:
        """Objects."""
        return torch.tensor([float(sum(len(x["instances"]) for x in batch))], device=self._model.device)

    def set_means(self, means: Tensor | None) -> None:
        self._criterion.mean_count = None if means is None else means[0]


def _ground_truth(entry: Mapping[str, Any], size: tuple[int, int], device: torch.device) -> Instances:
    """The objects of an image; none where it has labels only, as `CustomRCNN` takes it."""
    if "instances" in entry:
        return entry["instances"].to(device)
    found = Instances(size)
    found.gt_boxes = Boxes(torch.zeros(0, 4, device=device))
    found.gt_classes = torch.zeros(0, dtype=torch.int64, device=device)
    return found
