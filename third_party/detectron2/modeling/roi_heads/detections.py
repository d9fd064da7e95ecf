"""From scores and boxes of every region to detections."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detectron2.layers.nms import batched_nms
from detectron2.structures.boxes import Boxes
from detectron2.structures.instances import Instances


def fast_rcnn_inference(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """Detections of each image, and for each detection the row of its region.

    The arguments are, per image, those of `fast_rcnn_inference_single_image`.
    """
    results = [
        fast_rcnn_inference_single_image(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in results], [rows for _, rows in results]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """Every (region, class) of sufficient score that no better one of its class suppresses.

    Args:
        boxes: (R, 4 K) a box for each class, or (R, 4) one for all classes.
        scores: (R, K + 1), background last. Rows in which a score or box is not finite are dropped.
        image_shape: (height, width), which boxes are clipped to.
        score_thresh: a detection scores more than this.
        nms_thresh: IoU above which the worse of two detections of a class goes.
        topk_per_image: how many detections stay, the best first; negative for all.
    Returns:
        ``pred_boxes``, ``scores`` and ``pred_classes``; and the row of each, counted without the dropped ones.
    """
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    if not finite.all():
        boxes, scores = boxes[finite], scores[finite]
    scores = scores[:, :-1]
    rows, classes = (scores > score_thresh).nonzero(as_tuple=True)
    per_class = boxes.reshape(len(boxes), boxes.shape[1] // 4, 4)
    candidates = Boxes(per_class[rows, classes if per_class.shape[1] > 1 else 0])
    candidates.clip(image_shape)
    scores = scores[rows, classes]
    # float32: NMS on the CPU wants boxes and scores of one type.
    keep = batched_nms(candidates.tensor, scores.float(), classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    detections = Instances(image_shape, pred_boxes=candidates[keep], scores=scores[keep], pred_classes=classes[keep])
    return detections, rows[keep]
