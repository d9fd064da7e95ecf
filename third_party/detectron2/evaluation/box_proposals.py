"""Recall of class-agnostic box proposals."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectron2.structures.boxes import Boxes, pairwise_iou

__all__ = ["evaluate_box_proposals"]

_AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


def evaluate_box_proposals(
    proposals: dict[int | str, tuple[Tensor, Tensor]],
    annotations: dict[int | str, list[dict[str, Any]]],
    *,
    area: str = "all",
    limit: int | None = None,
) -> float:
    """Average recall over the IoU thresholds 0.5, 0.55, … 0.95.

    Every proposal covers at most one annotation: the pair of highest IoU is taken first, then the best among the rest.
    Images without proposals or without annotations to find are left out.

    Args:
        proposals: image id → boxes (n, 4) xyxy and their objectness logits (n,).
        annotations: image id → annotations in COCO's format.
        area: "all", "small", "medium" or "large"; which annotations count.
        limit: use this many proposals per image, those of highest objectness.
    Returns:
        Recall in [0, 1]; NaN without annotations.
    """
    smallest, largest = _AREAS[area]
    overlaps = [torch.zeros(0)]
    for image_id, (boxes, logits) in proposals.items():
        targets = [
            item["bbox"]
            for item in annotations.get(image_id, ())
            if not item.get("iscrowd", 0) and smallest <= item["area"] <= largest
        ]
        if not targets or not len(boxes):
            continue
        gt_boxes = torch.tensor(targets, dtype=torch.float32)
        gt_boxes[:, 2:] += gt_boxes[:, :2]
        best = boxes[logits.sort(descending=True).indices[:limit]]
        overlaps.append(_best_overlaps(pairwise_iou(Boxes(best), Boxes(gt_boxes))))
    found = torch.cat(overlaps)
    thresholds = torch.tensor(np.arange(0.5, 0.95 + 1e-5, 0.05), dtype=torch.float32)
    recalls = [(found >= threshold).float().sum() / float(len(found) or np.nan) for threshold in thresholds]
    return torch.stack(recalls).mean().item()


def _best_overlaps(iou: Tensor) -> Tensor:
    """(G,) IoU with which each annotation is covered, 0 if not, from IoUs (proposals, annotations)."""
    iou = iou.clone()
    covered = torch.zeros(iou.shape[1])
    for step in range(min(iou.shape)):
        per_annotation, proposal = iou.max(dim=0)
        value, annotation = per_annotation.max(dim=0)
        covered[step] = value
        iou[proposal[annotation]] = -1
        iou[:, annotation] = -1
    return covered
