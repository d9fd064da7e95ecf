"""Masks of detections: once for each distinct box, as masks that know no class depend on the box alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detectron2.structures import Instances

__all__ = ["masks_of_distinct_boxes"]


def masks_of_distinct_boxes(
    forward_mask: Callable[[Any, list[Instances]], list[Instances]],
    features: dict[str, Tensor],
    instances: list[Instances],
) -> list[Instances]:
    """What ``forward_mask(features, instances)`` returns for a class-agnostic mask head.

    A region is often detected as several classes, which all have its box: 300 detections of a large vocabulary may have
    a tenth as many boxes. The mask head is most of the time of an image with many detections.

    Args:
        forward_mask: sets ``pred_masks`` of each image's instances from their ``pred_boxes``.
        instances: detections of each image; changed in place.
    """
    distinct, places = [], []
    for each in instances:
        first, place = _first_of_each(each.pred_boxes.tensor)
        distinct.append(each[first])
        places.append(place)
    for each, few, place in zip(instances, forward_mask(features, distinct), places, strict=True):
        each.pred_masks = few.pred_masks[place]
    return instances


def _first_of_each(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the first of each set of equal boxes (N, 4), and for each box the place of its own among those."""
    if not len(boxes):
        empty = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return empty, empty
    unique, group = torch.unique(boxes, dim=0, return_inverse=True)
    count = len(unique)
    index = torch.arange(len(boxes), device=boxes.device)
    first = torch.full((count,), len(boxes), device=boxes.device).scatter_reduce(0, group, index, "amin")
    return first, group
