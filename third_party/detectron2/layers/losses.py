"""IoU losses with a penalty for the distance of centres (and the difference of aspect ratios)."""

from torchvision.ops import complete_box_iou_loss as ciou_loss
from torchvision.ops import distance_box_iou_loss as diou_loss

__all__ = ["ciou_loss", "diou_loss"]
