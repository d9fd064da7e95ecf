"""Detections of classes from detections of their names."""

from torchvision.ops import batched_nms

from detectron2.structures import Instances, pairwise_iou
from prompt_pretrain.class_groups import ClassGroups

__all__ = ["merge_names"]


def merge_names(found: Instances, groups: ClassGroups, nms_thresh: float) -> Instances:
    """What is left when each detection stands for the class of its name, the best first.

    Names have competed like classes before, so several detections of one object may be of the same class now: the best
    stays, which is the maximum over the names. Detections of background words go, and so do boxes of a worse score that
    they cover: what is called "wall" with more confidence is no "car".

    Args:
        found: ``pred_boxes``, ``scores`` and ``pred_classes``, which are positions of names.
        nms_thresh: IoU above which two detections are of the same object.
    """
    found = found[found.scores.argsort(descending=True, stable=True)]
    classes = groups.class_of(found.pred_classes)
    boxes = found.pred_boxes.tensor.float()
    kept = batched_nms(boxes, found.scores.float(), classes, nms_thresh)
    found = found[kept]
    found.pred_classes = classes[kept]
    return _without_background(found, len(groups.class_names) - 1, nms_thresh) if groups.has_background else found


def _without_background(found: Instances, background: int, iou_thresh: float) -> Instances:
    is_background = found.pred_classes == background
    overlaps = pairwise_iou(found.pred_boxes, found[is_background].pred_boxes) > iou_thresh
    better = found[is_background].scores[None] >= found.scores[:, None]
    return found[~is_background & ~(overlaps & better).any(dim=1)]
