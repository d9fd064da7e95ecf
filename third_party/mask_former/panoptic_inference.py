"""Panoptic segments from masks with a class each (MaskFormer, section 3.4)."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

__all__ = ["panoptic_inference"]


def panoptic_inference(
    logits: Tensor, masks: Tensor, things: Collection[int], score_threshold: float, overlap_threshold: float
) -> tuple[Tensor, list[dict[str, Any]]]:
    """A map (H, W) int32 of segment ids, 0 for none, and what each segment is.

    Every pixel goes to the query with the highest product of class and mask probability. A segment is dropped if less
    than ``overlap_threshold`` of its mask is visible; all stuff of one class is one segment.

    Args:
        logits: (Q, K + 1); the last class is "no object".
        masks: (Q, H, W) logits.
        things: classes whose instances are kept apart.
        score_threshold: smallest class probability of a query that takes part.
    """
    scores, labels = logits.softmax(-1).max(-1)
    kept = (labels < logits.shape[-1] - 1) & (scores > score_threshold)
    scores, labels, masks = scores[kept], labels[kept], masks[kept].sigmoid()
    segments = torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device)
    infos: list[dict[str, Any]] = []
    if len(masks) == 0:
        return segments, infos

    winner = (scores[:, None, None] * masks).argmax(0)
    queries = torch.arange(len(masks), device=masks.device)[:, None, None]
    visible = (winner == queries) & (masks >= 0.5)
    areas = torch.stack([(winner == queries).sum((1, 2)), (masks >= 0.5).sum((1, 2)), visible.sum((1, 2))], 1).tolist()
    stuff: dict[int, int] = {}
    for query, (label, (won, whole, seen)) in enumerate(zip(labels.tolist(), areas, strict=True)):
        if not (won and whole and seen) or won / whole < overlap_threshold:
            continue
        is_thing = label in things
        if not is_thing and label in stuff:
            segments[visible[query]] = stuff[label]
            continue
        segment = len(infos) + 1
        segments[visible[query]] = segment
        infos.append({"id": segment, "isthing": is_thing, "category_id": label})
        if not is_thing:
            stuff[label] = segment
    return segments, infos
