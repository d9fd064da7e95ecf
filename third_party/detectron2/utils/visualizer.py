"""Drawing detections, masks, label maps and annotations over an image."""

import colorsys
from collections.abc import Iterable, Sequence
from enum import Enum, unique
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detectron2.data.catalog import Metadata
from detectron2.structures.boxes import Boxes, BoxMode
from detectron2.structures.instances import Instances
from detectron2.structures.masks import BitMasks, PolygonMasks
from detectron2.utils.colormap import colormap
from detectron2.utils.drawing import Color, Drawing, inner_point
from detectron2.utils.file_io import PathManager
from detectron2.utils.generic_mask import GenericMask
from detectron2.utils.left_out import needs_real_detectron2
from detectron2.utils.vis_image import VisImage

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

_SMALL_OBJECT_AREA = 1000  # pixels of the output; labels of smaller objects go beside them
_OFF_WHITE = (1.0, 1.0, 240.0 / 255)


@unique
class ColorMode(Enum):
    """How instances are coloured: by instance, by class, or by instance over a grey image."""

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


def palette_color(index: int) -> np.ndarray:
    """(3,) RGB in [0, 1]; different for any number of indices, and the same in every run."""
    colors = colormap(rgb=True, maximum=1)
    if 0 <= index < len(colors):
        return colors[index]
    hue = index * 0.6180339887 % 1  # the golden ratio spreads any number of hues evenly
    return np.array(colorsys.hsv_to_rgb(hue, 0.5 + 0.5 * (index % 7) / 6, 0.6 + 0.4 * (index % 5) / 4))


class Visualizer(Drawing):
    """Draws over one image; every method returns the ``VisImage``.

    Coordinates are pixels of the image, colours what matplotlib takes. The output is ``scale`` times as large.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        """Start from an image.

        Args:
            img_rgb: (H, W, 3) RGB in 0 … 255.
            metadata: class names and colours: thing_classes, thing_colors, stuff_classes, stuff_colors.
        """
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = metadata if metadata is not None else Metadata(name="no data set")
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        self._default_font_size = max(np.sqrt(self.output.height * self.output.width) // 90, 10 // scale)
        self._default_font_size *= font_size_scale
        self._instance_mode = instance_mode
        self._random = np.random.default_rng(0)  # its own: drawing must not change a training

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw boxes, masks, class names and scores of a detector's output.

        Args:
            predictions: of the size of the image; draws those it has of pred_boxes, pred_classes, scores, pred_masks
                (n, H, W) and pred_keypoints.
            jittering: in SEGMENTATION mode vary the colours of instances of a class.
        """
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        scores = predictions.scores.tolist() if predictions.has("scores") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes"))
        keypoints = predictions.pred_keypoints if predictions.has("pred_keypoints") else None
        masks = self._convert_masks(predictions.pred_masks) if predictions.has("pred_masks") else None
        colors, alpha = None, 0.5
        if self._instance_mode == ColorMode.SEGMENTATION and classes is not None and self.metadata.get("thing_colors"):
            colors = [self._class_color("thing", label) for label in classes]
            colors = [self._jitter(color) for color in colors] if jittering else colors
            alpha = 0.8
        if self._instance_mode == ColorMode.IMAGE_BW:
            covered = None
            if masks is not None and len(masks):
                covered = np.any([mask.mask > 0 for mask in masks], axis=0)
            self.output.reset_image(self._create_grayscale_image(covered))
            alpha = 0.3
        return self.overlay_instances(
            boxes=boxes, labels=labels, masks=masks, keypoints=keypoints, assigned_colors=colors, alpha=alpha
        )

    def draw_sem_seg(
        self, sem_seg: Tensor | np.ndarray, area_threshold: int | None = None, alpha: float = 0.8
    ) -> VisImage:
        """Draw a label map (H, W); labels beyond stuff_classes, such as "ignore", stay uncovered.

        Args:
            area_threshold: classes with fewer pixels are not drawn.
        """
        sem_seg = _to_numpy(sem_seg)
        names = self.metadata.get("stuff_classes")
        labels, areas = np.unique(sem_seg, return_counts=True)
        for label in labels[np.argsort(-areas, kind="stable")].tolist():
            if label < 0 or (names is not None and label >= len(names)):
                continue
            self.draw_binary_mask(
                (sem_seg == label).astype(np.uint8),
                color=self._class_color("stuff", label),
                edge_color=_OFF_WHITE,
                text=names[label] if names is not None else str(label),
                alpha=alpha,
                area_threshold=area_threshold or 0,
            )
        return self.output

    def draw_panoptic_seg(
        self,
        panoptic_seg: Tensor | np.ndarray,
        segments_info: Sequence[dict[str, Any]] | None,
        area_threshold: int | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw a map of segment ids (H, W).

        Args:
            segments_info: per segment id, category_id, isthing, and optionally score; None takes classes from the ids
                by the metadata's ``label_divisor``.
        """
        ids = _to_numpy(panoptic_seg)
        if segments_info is None:
            segments_info = self._segments_of(ids)
        if self._instance_mode == ColorMode.IMAGE_BW:
            known = [segment["id"] for segment in segments_info]
            self.output.reset_image(self._create_grayscale_image(np.isin(ids, known)))
        for segment in segments_info:
            if not segment["isthing"]:
                label = segment["category_id"]
                self.draw_binary_mask(
                    (ids == segment["id"]).astype(np.uint8),
                    color=self._class_color("stuff", label),
                    edge_color=_OFF_WHITE,
                    text=_name(self.metadata.get("stuff_classes"), label),
                    alpha=alpha,
                    area_threshold=area_threshold or 0,
                )
        things = [segment for segment in segments_info if segment["isthing"]]
        if not things:
            return self.output
        classes = [segment["category_id"] for segment in things]
        scores = [segment["score"] for segment in things] if all("score" in segment for segment in things) else None
        crowd = [bool(segment.get("iscrowd", False)) for segment in things]
        return self.overlay_instances(
            masks=[(ids == segment["id"]).astype(np.uint8) for segment in things],
            labels=_create_text_labels(classes, scores, self.metadata.get("thing_classes"), crowd),
            assigned_colors=[self._jitter(self._class_color("thing", label)) for label in classes],
            alpha=alpha,
        )

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the annotations of an image in the format of registered data sets, and its label map if it has one."""
        annotations = dic.get("annotations")
        if annotations:
            boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations if "bbox" in a]
            masks = [a["segmentation"] for a in annotations if "segmentation" in a]
            keypoints = [np.array(a["keypoints"]).reshape(-1, 3) for a in annotations if "keypoints" in a]
            classes = [a["category_id"] for a in annotations]
            crowd = [a.get("iscrowd", 0) for a in annotations]
            colors = None
            if self._instance_mode == ColorMode.SEGMENTATION and self.metadata.get("thing_colors"):
                colors = [self._jitter(self._class_color("thing", label)) for label in classes]
            self.overlay_instances(
                labels=_create_text_labels(classes, None, self.metadata.get("thing_classes"), crowd),
                boxes=boxes if len(boxes) == len(annotations) else None,
                masks=masks if len(masks) == len(annotations) else None,
                keypoints=np.stack(keypoints) if len(keypoints) == len(annotations) else None,
                assigned_colors=colors,
            )
        sem_seg = dic.get("sem_seg")
        if sem_seg is None and "sem_seg_file_name" in dic:
            sem_seg = _read_image(dic["sem_seg_file_name"])
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        if "pan_seg_file_name" in dic:
            rgb = _read_image(dic["pan_seg_file_name"]).astype(np.int64)
            self.draw_panoptic_seg(rgb @ np.array([1, 256, 256**2]), dic["segments_info"], area_threshold=0, alpha=0.5)
        return self.output

    def overlay_instances(
        self,
        *,
        boxes: Boxes | Tensor | np.ndarray | Sequence[Any] | None = None,
        labels: Sequence[str] | None = None,
        masks: BitMasks | PolygonMasks | Tensor | np.ndarray | Sequence[Any] | None = None,
        keypoints: Tensor | np.ndarray | None = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, the larger ones first. What is given must have the same length.

        Args:
            boxes: (n, 4) xyxy.
            labels: texts.
            masks: bitmaps, lists of polygons, run-length encodings or ``GenericMask``.
            keypoints: (n, K, 3) x, y, score.
        Raises:
            ValueError: different lengths.
        """
        boxes = None if boxes is None else self._convert_boxes(boxes)
        masks = None if masks is None else self._convert_masks(masks)
        keypoints = None if keypoints is None else _to_numpy(keypoints)
        given = {"boxes": boxes, "labels": labels, "masks": masks, "keypoints": keypoints}
        given["assigned_colors"] = assigned_colors
        lengths = {name: len(value) for name, value in given.items() if value is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"instances to draw must have the same number of everything, got {lengths}")
        count = next(iter(lengths.values()), 0)
        colors = assigned_colors or [palette_color(index) for index in range(count)]
        for index in self._drawing_order(boxes, masks, count):
            if boxes is not None:
                self.draw_box(boxes[index], edge_color=colors[index])
            if masks is not None:
                self._draw_mask(masks[index], colors[index], None, alpha)
            if labels is not None:
                self._draw_label(
                    labels[index],
                    colors[index],
                    None if boxes is None else boxes[index],
                    None if masks is None else masks[index],
                )
        if keypoints is not None:
            for points in keypoints:
                self.draw_and_connect_keypoints(points)
        return self.output

    def _drawing_order(self, boxes: np.ndarray | None, masks: list[GenericMask] | None, count: int) -> Iterable[int]:
        if boxes is not None:
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        elif masks is not None:
            areas = np.array([mask.area() for mask in masks])
        else:
            return range(count)
        return np.argsort(-areas, kind="stable").tolist()

    def _draw_label(self, label: str, color: Color, box: np.ndarray | None, mask: GenericMask | None) -> None:
        """At the box's corner, else within the mask; beside a small object."""
        if box is not None:
            x0, y0, x1, y1 = box
            position, alignment = (x0, y0), "left"
        elif mask is not None and mask.area():
            x0, y0, x1, y1 = mask.bbox()
            position, alignment = inner_point(mask.mask), "center"
        else:
            return
        scale = self.output.scale
        if (x1 - x0) * (y1 - y0) < _SMALL_OBJECT_AREA * scale or y1 - y0 < 40 * scale:
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        relative_height = (y1 - y0) / np.sqrt(self.output.height * self.output.width)
        size = np.clip((relative_height - 0.02) / 0.08 + 1, 1.2, 2) * 0.5 * self._default_font_size
        color = self._change_color_brightness(color, brightness_factor=0.7)
        self.draw_text(label, position, color=color, horizontal_alignment=alignment, font_size=size)

    def overlay_rotated_instances(self, *args: Any, **kwargs: Any) -> VisImage:
        raise needs_real_detectron2("detectron2.utils.visualizer.Visualizer.overlay_rotated_instances")

    def get_output(self) -> VisImage:
        """The image with what was drawn."""
        return self.output

    def _class_color(self, kind: str, label: int) -> Color:
        """Colour of a "thing" or "stuff" class: that of the metadata, else one of the palette."""
        colors = self.metadata.get(f"{kind}_colors")
        if colors is not None and 0 <= label < len(colors):
            return [channel / 255 for channel in colors[label]]
        return palette_color(label)

    def _segments_of(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Segments of a map whose ids are class * label_divisor + instance; -1 is no segment."""
        divisor = self.metadata.get("label_divisor")
        if divisor is None:
            raise ValueError(f"without segments_info, metadata of {self.metadata.name!r} must have label_divisor")
        things = set((self.metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        return [
            {"id": segment, "category_id": segment // divisor, "isthing": segment // divisor in things}
            for segment in np.unique(ids).tolist()
            if segment >= 0
        ]

    def _convert_boxes(self, boxes: Boxes | Tensor | np.ndarray | Sequence[Any]) -> np.ndarray:
        boxes = boxes.tensor if isinstance(boxes, Boxes) else boxes
        return _to_numpy(boxes).astype(np.float64).reshape(-1, 4)

    def _convert_masks(self, masks: Any) -> list[GenericMask]:
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, BitMasks):
            masks = masks.tensor
        if isinstance(masks, Tensor | np.ndarray):
            masks = list(_to_numpy(masks))
        size = self.output.height, self.output.width
        return [
            mask if isinstance(mask, GenericMask) else GenericMask(_to_numpy_or_same(mask), *size) for mask in masks
        ]


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[Any] | None = None,
) -> list[str] | None:
    """The text "name 87%" of each instance, with "|crowd" where it is one; None without classes and scores."""
    labels = None
    if classes is not None:
        labels = [_name(class_names, label) for label in classes]
    if scores is not None:
        percents = [f"{score * 100:.0f}%" for score in scores]
        labels = percents if labels is None else [f"{a} {b}" for a, b in zip(labels, percents, strict=True)]
    if labels is not None and is_crowd is not None:
        labels = [label + ("|crowd" if crowd else "") for label, crowd in zip(labels, is_crowd, strict=True)]
    return labels


def _name(names: Sequence[str] | None, label: int) -> str:
    return names[label] if names else str(label)


def _to_numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _to_numpy_or_same(mask: Any) -> Any:
    return _to_numpy(mask) if isinstance(mask, Tensor) else mask


def _read_image(file_name: str) -> np.ndarray:
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        return np.array(image)
