"""Drawing over the frames of a video, with colours that stay with their objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from torch import Tensor

from detectron2.data.catalog import Metadata
from detectron2.structures.instances import Instances
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer, _create_text_labels, palette_color

__all__ = ["VideoVisualizer"]

_MASK_IOU = 0.5  # above, an instance of the same class is the same object
_BOX_IOU = 0.6
_MEMORY = 8  # frames for which an object that is not seen is remembered


@dataclass
class _Object:
    """An object seen lately: its class, its box xyxy or run-length encoded mask, its colour."""

    label: int | None
    box: list[float]
    mask: dict[str, Any] | None
    color: np.ndarray
    frames_left: int = _MEMORY


class VideoVisualizer:
    """Like ``Visualizer`` frame by frame; an instance keeps its colour as long as boxes or masks overlap."""

    def __init__(self, metadata: Metadata | None, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        """``instance_mode``: IMAGE or IMAGE_BW to colour by instance, SEGMENTATION by class."""
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._objects: list[_Object] = []
        self._colors_used = 0

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Instances) -> VisImage:
        """Draw a detector's output over a frame (H, W, 3) RGB."""
        visualizer = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        if self._instance_mode == ColorMode.SEGMENTATION:
            return visualizer.draw_instance_predictions(predictions, jittering=False)
        masks = predictions.pred_masks if predictions.has("pred_masks") else None
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        scores = predictions.scores.tolist() if predictions.has("scores") else None
        alpha = 0.5
        if self._instance_mode == ColorMode.IMAGE_BW:
            covered = None if masks is None else masks.any(dim=0).cpu().numpy()
            visualizer.output.reset_image(visualizer._create_grayscale_image(covered))
            alpha = 0.3
        return visualizer.overlay_instances(
            boxes=None if masks is not None else boxes,  # a mask says more
            masks=masks,
            labels=_create_text_labels(classes, scores, visualizer.metadata.get("thing_classes")),
            keypoints=predictions.pred_keypoints if predictions.has("pred_keypoints") else None,
            assigned_colors=self._colors(classes, boxes, masks, len(predictions)),
            alpha=alpha,
        )

    def draw_sem_seg(
        self, frame: np.ndarray, sem_seg: Tensor | np.ndarray, area_threshold: int | None = None
    ) -> VisImage:
        """Draw a label map (H, W) over a frame (H, W, 3) RGB."""
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold=area_threshold)

    def draw_panoptic_seg_predictions(
        self,
        frame: np.ndarray,
        panoptic_seg: Tensor,
        segments_info: Sequence[dict[str, Any]],
        area_threshold: int | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw a map of segment ids (H, W) over a frame; things keep their colours."""
        visualizer = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        stuff = [segment for segment in segments_info if not segment["isthing"]]
        visualizer.draw_panoptic_seg(panoptic_seg, stuff, area_threshold, alpha)
        things = [segment for segment in segments_info if segment["isthing"]]
        ids = panoptic_seg.cpu().numpy() if isinstance(panoptic_seg, Tensor) else np.asarray(panoptic_seg)
        masks = np.stack([ids == segment["id"] for segment in things]) if things else np.zeros((0, *ids.shape), bool)
        classes = [segment["category_id"] for segment in things]
        scores = [segment["score"] for segment in things] if all("score" in segment for segment in things) else None
        return visualizer.overlay_instances(
            masks=masks,
            labels=_create_text_labels(classes, scores, visualizer.metadata.get("thing_classes")),
            assigned_colors=self._colors(classes, None, masks, len(things)),
            alpha=alpha,
        )

    def _colors(self, classes: list[int] | None, boxes: Any, masks: Any, count: int) -> list[np.ndarray]:
        """Colours of the instances of a frame; objects that were matched, or not seen for a while, are replaced."""
        encoded: list[dict[str, Any] | None] = [None] * count
        if masks is not None and count:
            bitmaps = np.asarray(masks.cpu() if isinstance(masks, Tensor) else masks, dtype=np.uint8)
            encoded = mask_utils.encode(np.asfortranarray(bitmaps.transpose(1, 2, 0)))
        corners = [[0.0] * 4] * count if boxes is None else boxes.tensor.tolist()
        labels = classes if classes is not None else [None] * count
        new = [
            _Object(label, box, mask, np.zeros(3)) for label, box, mask in zip(labels, corners, encoded, strict=True)
        ]
        partner = _match(self._objects, new)
        for index, instance in enumerate(new):
            if index in partner:
                instance.color = self._objects[partner[index]].color
            else:
                instance.color = palette_color(self._colors_used)
                self._colors_used += 1
        seen = set(partner.values())
        missing = [item for index, item in enumerate(self._objects) if index not in seen]
        for item in missing:
            item.frames_left -= 1
        self._objects = [item for item in missing if item.frames_left > 0] + new
        return [instance.color for instance in new]


def _match(old: list[_Object], new: list[_Object]) -> dict[int, int]:
    """new index → old index of the same object, best overlaps first."""
    if not old or not new:
        return {}
    by_mask = all(item.mask is not None for item in old + new)
    if by_mask:
        overlaps = mask_utils.iou([item.mask for item in new], [item.mask for item in old], [False] * len(old))
    else:
        overlaps = mask_utils.iou(_xywh(new), _xywh(old), [False] * len(old))
    for row, instance in enumerate(new):
        overlaps[row, [item.label != instance.label for item in old]] = 0
    partner: dict[int, int] = {}
    for flat in np.argsort(-overlaps, axis=None, kind="stable").tolist():
        row, column = divmod(flat, len(old))
        if overlaps[row, column] <= (_MASK_IOU if by_mask else _BOX_IOU):
            break
        if row not in partner and column not in partner.values():
            partner[row] = column
    return partner


def _xywh(objects: list[_Object]) -> np.ndarray:
    boxes = np.array([item.box for item in objects], dtype=np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
