"""From dense predictions to boxes: candidates of each level, non-maximum suppression, the best of each image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from centernet.modeling.dense_heads.locations import Size, level_locations
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

__all__ = ["Decoder"]

_SMALLEST_SIDE = 0.01  # pixels


@dataclass(frozen=True)
class Decoder:
    """Settings of decoding.

    Args:
        strides: of the levels, in pixels.
        score_thresh: a candidate's heat is larger.
        pre_nms_topk: candidates per image and level.
        post_nms_topk: detections per image, more if the last ones have equal scores.
        nms_thresh: IoU above which the worse of two boxes of a class goes; not positive for no suppression.
        take_root: a score is the square root of the heat.
        center_nms: candidates are local maxima of the heatmap (3×3).
    """

    strides: tuple[int, ...]
    score_thresh: float
    pre_nms_topk: int
    post_nms_topk: int
    nms_thresh: float
    take_root: bool
    center_nms: bool = False

    @torch.no_grad()
    def __call__(
        self,
        heatmaps: Sequence[Tensor],
        distances: Sequence[Tensor],
        image_sizes: Sequence[Size],
        object_maps: Sequence[Tensor | None] | None = None,
    ) -> list[Instances]:
        """Per image ``pred_boxes`` (not clipped), ``scores`` and ``pred_classes``, by falling score.

        Args:
            heatmaps: per level (B, C, H, W) in [0, 1].
            distances: per level (B, 4, H, W) to the left, upper, right and lower side, in strides.
            image_sizes: (height, width) of the images.
            object_maps: per level (B, 1, H, W) in [0, 1], which scores are multiplied by.
        """
        if object_maps is None:
            object_maps = [None] * len(heatmaps)
        levels = [
            self._candidates(*level) for level in zip(heatmaps, distances, object_maps, self.strides, strict=True)
        ]
        scores, boxes, classes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        if self.take_root:
            scores = scores.sqrt()  # the root of -1, which marks absent candidates, is NaN: neither is above 0
        return [self._best(*image, size) for *image, size in zip(scores, boxes, classes, image_sizes, strict=True)]

    def _candidates(
        self, heatmap: Tensor, distances: Tensor, object_map: Tensor | None, stride: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, K), boxes (B, K, 4) and classes (B, K) of a level; a score of -1 marks that there is none."""
        height, width = heatmap.shape[-2:]
        heat = heatmap.float()
        if self.center_nms:
            heat = heat.masked_fill(F.max_pool2d(heat, 3, stride=1, padding=1) != heat, 0.0)
        scores = heat if object_map is None else heat * object_map.float()
        scores = scores.masked_fill(~(heat > self.score_thresh), -1.0).flatten(1)  # (B, C H W)
        scores, chosen = scores.topk(min(self.pre_nms_topk, scores.shape[1]), dim=1, sorted=False)
        place = chosen % (height * width)
        sides = distances.float().flatten(2) * stride  # (B, 4, H W)
        sides = sides.gather(2, place[:, None].expand(-1, 4, -1)).transpose(1, 2)  # (B, K, 4)
        centers = level_locations(height, width, stride, heat.device)[place]  # (B, K, 2)
        low, high = centers - sides[..., :2], centers + sides[..., 2:]
        return scores, torch.cat((low, torch.maximum(high, low + _SMALLEST_SIDE)), dim=-1), chosen // (height * width)

    def _best(self, scores: Tensor, boxes: Tensor, classes: Tensor, image_size: Size) -> Instances:
        """The detections of an image among its candidates."""
        there = (scores >= 0) & boxes.isfinite().all(dim=1)
        scores, boxes, classes = scores[there], boxes[there], classes[there]
        order = scores.argsort(descending=True, stable=True)
        scores, boxes, classes = scores[order], boxes[order], classes[order]
        if self.nms_thresh > 0 and not self.center_nms:
            keep = self._suppress(scores, boxes, classes)
            scores, boxes, classes = scores[keep], boxes[keep], classes[keep]
        if len(scores) > self.post_nms_topk > 0:
            keep = scores >= scores[self.post_nms_topk - 1]
            scores, boxes, classes = scores[keep], boxes[keep], classes[keep]
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def _suppress(self, scores: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """Indices of the boxes, given by falling score, that no better one of their class suppresses.

        Boxes that cannot be among the ``post_nms_topk`` best may be left out: what becomes of a box depends on better
        ones alone, so that the best boxes usually settle it, and time grows with the square of their number.
        """
        wanted = self.post_nms_topk if self.post_nms_topk > 0 else len(scores)
        considered = wanted + wanted // 4
        while True:
            first = slice(considered)
            keep = batched_nms(boxes[first], scores[first], classes[first], self.nms_thresh)
            if considered >= len(scores):
                return keep
            if len(keep) >= wanted and scores[considered] < scores[keep[wanted - 1]]:
                return keep
            needed = considered * max(wanted / len(keep), 1)  # if others are suppressed as often as these
            considered = int(1.25 * needed) + 1
