"""Non-maximum suppression."""

from torch import Tensor
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that stay when boxes suppress only those of their own group, by falling score.

    Args:
        boxes: (N, 4) XYXY.
        scores: (N,).
        idxs: (N,) group of each box, such as its class or pyramid level.
        iou_threshold: a box goes when its IoU with a better one of its group is larger than this.
    """
    assert boxes.shape[-1] == 4, f"boxes must be (N, 4), got {tuple(boxes.shape)}"
    # Groups are kept apart by shifting their boxes, for which half precision has too few digits.
    return box_ops.batched_nms(boxes.float(), scores.float(), idxs, iou_threshold)
