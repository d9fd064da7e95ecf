"""From region features to detections over vocabularies of any size, exactly and in bounded time and memory.

A cascade's scores of R regions and C classes, means over its stages, would fill several R x C matrices. Here classes
are scored some at a time and only candidates above the threshold are kept, the best ``topk * R`` of an image.

That cap changes no result. Non-maximum suppression decides about a candidate from better ones of its class alone, so
the ``topk`` best detections depend on the candidates down to the last of them only. Among ``topk * R`` candidates there
are at least ``topk`` classes, as a class has one candidate per region, and the best candidate of a class is always a
detection. Hence also suppression goes through the candidates in blocks and stops at the ``topk``-th detection.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

from detection.candidate_screening import Screen
from detection.linear_scores import LinearScores, log_normalisers, mean_probabilities
from detectron2.structures import Boxes, Instances, pairwise_iou

__all__ = ["LinearScores", "detect", "scores_of_logits"]

_CHUNK_ON_CPU, _CHUNK_ELSEWHERE = 1024, 16384  # classes
_NMS_BLOCK = 2048  # candidates that one call compares pairwise
_POOL_SLACK = 2  # the pool is cut to its limit when it holds this many times as many


def scores_of_logits(logits: Tensor) -> LinearScores:
    """Logits (R, C + 1) that are there already."""
    return LinearScores(logits, None, None)


class _Candidates:
    """(region, class, score) of one image, those with the best scores."""

    def __init__(self, valid: Tensor, score_thresh: float, limit: int | None, one_class: bool) -> None:
        """
        Args:
            valid: (R,) regions that may have candidates.
            limit: about how many to keep; None for all.
            one_class: of each region only the best class, or several of equal score.
        """
        self.limit = limit
        self.one_class = one_class
        # (R, 1): what a further candidate must exceed.
        self.floors = torch.where(valid, score_thresh, torch.inf)[:, None]
        self.best: Tensor | None = None  # (R, 1) best score of each region so far, with one_class
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.count = 0

    def add(self, scores: Tensor, classes: Tensor) -> None:
        """Scores (R, n) of the classes (n,), which come in ascending order."""
        passing = scores > self.floors
        if self.one_class:
            best = scores.amax(dim=1, keepdim=True)
            self.best = best if self.best is None else torch.maximum(self.best, best)
            passing &= scores == self.best
        rows, columns = passing.nonzero(as_tuple=True)
        if not len(rows):
            return
        self.parts.append((rows, classes[columns], scores[rows, columns]))
        self.count += len(rows)
        if self.limit is not None and self.count > _POOL_SLACK * self.limit:
            self._cut()

    def _cut(self) -> None:
        rows, classes, scores = self._joined()
        if len(scores) > self.limit > 0:
            scores, order = scores.topk(self.limit)
            rows, classes = rows[order], classes[order]
            self.floors.clamp_(min=scores[-1])
        self.parts, self.count = [(rows, classes, scores)], len(scores)

    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        if not self.parts:
            empty = torch.zeros(0, dtype=torch.int64, device=self.floors.device)
            return empty, empty, empty.to(self.floors.dtype)
        rows, classes, scores = (torch.cat(column) for column in zip(*self.parts, strict=True))
        if self.one_class:
            alone = scores == self.best[rows, 0]
            rows, classes, scores = rows[alone], classes[alone], scores[alone]
        return rows, classes, scores

    def sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, classes and scores, by falling score; equal scores by region."""
        rows, classes, scores = self._joined()
        if len(self.parts) > 1:
            order = rows.argsort(stable=True)
            rows, classes, scores = rows[order], classes[order], scores[order]
        scores, order = scores.sort(descending=True, stable=True)
        return rows[order][: self.limit], classes[order][: self.limit], scores[: self.limit]


@torch.no_grad()
def detect(
    stages: Sequence[LinearScores],
    boxes: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    *,
    proposal_scores: Sequence[Tensor] | None,
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
    sigmoid: bool,
    one_class_per_proposal: bool = False,
    classes_per_chunk: int = 0,
) -> tuple[list[Instances], list[Tensor]]:
    """Detections of each image, as detectron2's ``fast_rcnn_inference`` finds them, and the region of each.

    Args:
        stages: scores of all images' regions by each stage, over the same classes; their mean counts.
        boxes: per image (R_i, 4) one box per region, or (R_i, 4 C) one for each class.
        image_sizes: per image (height, width), which boxes are clipped to.
        proposal_scores: per image (R_i,); then a detection's score is the root of class score times proposal score.
        score_thresh: a detection scores more than this.
        nms_thresh: IoU above which the worse of two detections of a class goes.
        topk_per_image: how many detections stay, the best first; negative for all.
        sigmoid: probabilities of a class are sigmoids, otherwise softmax over classes and background.
        one_class_per_proposal: only the best class of each region counts.
        classes_per_chunk: how many classes to score at a time, which bounds the memory; 0 for 1024 on a CPU, whose
            caches they should fit, and 16384 elsewhere.
    Returns:
        Per image ``pred_boxes``, ``scores``, ``pred_classes``; and (N,) regions. Regions with a score or box that is
        not finite have no detection.
    """
    counts = [len(each) for each in boxes]
    if not boxes:
        return [], []
    all_boxes = torch.cat(list(boxes))
    factors = torch.cat(list(proposal_scores)).to(all_boxes.dtype) if proposal_scores is not None else None
    valid = torch.isfinite(all_boxes).all(dim=1)
    for stage in stages:
        valid &= torch.isfinite(stage.features).all(dim=1)
    if factors is not None:
        valid &= factors >= 0  # roots of negative numbers are no scores, nor is NaN
    pools = [
        _Candidates(
            image_valid,
            score_thresh,
            limit=topk_per_image * len(image_valid) if topk_per_image >= 0 else None,
            one_class=one_class_per_proposal,
        )
        for image_valid in valid.split(counts)
    ]
    if classes_per_chunk <= 0:
        classes_per_chunk = _CHUNK_ON_CPU if all_boxes.device.type == "cpu" else _CHUNK_ELSEWHERE
    _score_classes(stages, factors, valid, pools, counts, sigmoid, classes_per_chunk)
    results = [
        _suppress(pool, image_boxes, image_size, nms_thresh, topk_per_image)
        for pool, image_boxes, image_size in zip(pools, boxes, image_sizes, strict=True)
    ]
    return [instances for instances, _ in results], [rows for _, rows in results]


def _score_classes(
    stages: Sequence[LinearScores],
    factors: Tensor | None,
    valid: Tensor,
    pools: Sequence[_Candidates],
    counts: Sequence[int],
    sigmoid: bool,
    classes_per_chunk: int,
) -> None:
    """Fill the pools, some classes at a time."""
    num_classes = stages[0].num_columns - 1
    normalisers = None if sigmoid else log_normalisers(stages, classes_per_chunk)
    screen = Screen.of(stages, valid, num_classes, classes_per_chunk) if sigmoid else None
    for start in range(0, num_classes, classes_per_chunk):
        classes: Tensor | slice = slice(start, min(start + classes_per_chunk, num_classes))
        if screen is not None:
            floors = torch.cat([pool.floors for pool in pools])[:, 0]
            classes = screen.promising(classes, floors, factors)
            if isinstance(classes, Tensor) and not len(classes):
                continue
        scores = mean_probabilities(stages, classes, normalisers)
        if factors is not None:
            scores = scores.mul_(factors[:, None]).sqrt_()
        if isinstance(classes, slice):
            classes = torch.arange(classes.start, classes.stop, device=scores.device)
        for pool, image_scores in zip(pools, scores.split(list(counts)), strict=True):
            pool.add(image_scores, classes)


def _suppress(
    pool: _Candidates, boxes: Tensor, image_size: tuple[int, int], nms_thresh: float, topk: int
) -> tuple[Instances, Tensor]:
    rows, classes, scores = pool.sorted()
    if boxes.shape[1] > 4:
        candidates = Boxes(boxes.view(len(boxes), boxes.shape[1] // 4, 4)[rows, classes])
    else:
        candidates = Boxes(boxes[rows])
    candidates.clip(image_size)
    keep = first_survivors(candidates.tensor, classes, nms_thresh, topk if topk >= 0 else None)
    detections = Instances(image_size, pred_boxes=candidates[keep], scores=scores[keep], pred_classes=classes[keep])
    return detections, rows[keep]


def first_survivors(boxes: Tensor, classes: Tensor, iou_threshold: float, count: int | None) -> Tensor:
    """Indices of the first ``count`` boxes that no better one of their class suppresses.

    Args:
        boxes: (N, 4), best first.
        classes: (N,).
        iou_threshold: a box goes when its IoU with a better one of its class that stays is larger.
        count: None for all.
    """
    keep = classes.new_zeros(0)
    for start in range(0, len(boxes), _NMS_BLOCK):
        block = torch.arange(start, min(start + _NMS_BLOCK, len(boxes)), device=boxes.device)
        if len(keep):
            same = classes[block, None] == classes[keep]
            overlap = pairwise_iou(Boxes(boxes[block]), Boxes(boxes[keep])) > iou_threshold
            block = block[~(same & overlap).any(dim=1)]
        keep = torch.cat((keep, block[_nms_by_class(boxes[block], classes[block], iou_threshold)]))
        if count is not None and len(keep) >= count:
            return keep[:count]
    return keep


def _nms_by_class(boxes: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes (N, 4), best first, that stay, ascending: one call for all classes.

    Classes are kept apart by shifting their boxes: in double precision, as single has too few digits for the pixels of
    a box that is shifted by the width of 20,000 images.
    """
    if not len(boxes):
        return classes
    boxes = boxes.double()
    shifts = classes.double() * (boxes.max() - boxes.min() + 1)
    ranks = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    return nms(boxes + shifts[:, None], ranks, iou_threshold)
