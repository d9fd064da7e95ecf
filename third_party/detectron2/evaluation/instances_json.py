"""A model's output for one image as a list of detections in the format of COCO's result files."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from torch import Tensor

from detectron2.structures.instances import Instances

__all__ = ["encode_masks", "instances_to_coco_json"]

_MASK_BYTES = 64 * 2**20  # masks are encoded in groups of this size, to bound the copy that the encoder needs


def instances_to_coco_json(instances: Instances, img_id: int | str) -> list[dict[str, Any]]:
    """Detections as ``image_id, category_id, bbox, score`` and, where there are, ``segmentation`` and ``keypoints``.

    Args:
        instances: on the CPU, with pred_boxes, scores, pred_classes; optionally pred_masks (n, H, W), or
            pred_masks_rle, and pred_keypoints (n, K, 3).
        img_id: written into each.
    Returns:
        A list of n. ``category_id`` is the class index of the model, ``bbox`` x, y, width, height in pixels,
        ``segmentation`` a compressed run-length encoding.
    """
    count = len(instances)
    if count == 0:
        return []
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist(), strict=True)
    results: list[dict[str, Any]] = [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score} for category, box, score in columns
    ]
    if instances.has("pred_masks_rle"):
        rles = [dict(rle) for rle in instances.pred_masks_rle]
    elif instances.has("pred_masks"):
        masks = instances.pred_masks
        rles = encode_masks(masks if isinstance(masks, Tensor) else masks.tensor)
    else:
        rles = []
    for item, rle in zip(results, rles, strict=False):  # none, or one each
        if isinstance(rle["counts"], bytes):
            rle["counts"] = rle["counts"].decode()  # JSON has no bytes
        item["segmentation"] = rle
    if instances.has("pred_keypoints"):
        # A pixel's centre is at .5 in detections, at .0 in COCO's keypoints.
        keypoints = instances.pred_keypoints.clone()
        keypoints[:, :, :2] -= 0.5
        for item, points in zip(results, keypoints.flatten(1).tolist(), strict=True):
            item["keypoints"] = points
    return results


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Compressed run-length encodings, ``counts`` as bytes, of masks (n, H, W), non-zero where they cover."""
    group = max(_MASK_BYTES // max(masks[0].numel(), 1), 1) if len(masks) else 1
    rles = []
    for part in masks.split(group):
        # The encoder wants (H, W, n) in Fortran order, which is (n, W, H) in C order.
        columns_first = (part != 0).transpose(1, 2).contiguous().numpy().view(np.uint8)
        rles += mask_utils.encode(columns_first.transpose(2, 1, 0))
    return rles
