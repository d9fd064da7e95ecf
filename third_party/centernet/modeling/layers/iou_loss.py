"""IoU losses of boxes given by their distances from a point inside (UnitBox, arXiv 1608.01471; GIoU, 1902.09630)."""

import torch
from torch import Tensor, nn

__all__ = ["IOULoss"]

_TYPES = ("iou", "linear_iou", "giou")


class IOULoss(nn.Module):
    """Loss of pairs of boxes that share a reference point.

    Args:
        loc_loss_type: ``iou`` for -log IoU, ``linear_iou`` for 1 - IoU, ``giou`` for 1 - GIoU.
    """

    def __init__(self, loc_loss_type: str = "iou") -> None:
        super().__init__()
        if loc_loss_type not in _TYPES:
            raise ValueError(
                f"box loss is {loc_loss_type!r}, expected one of {', '.join(_TYPES)} (MODEL.CENTERNET.LOC_LOSS_TYPE)"
            )
        self.loc_loss_type = loc_loss_type

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "sum") -> Tensor:
        """Sum of the losses times ``weight``, or with ``reduction="none"`` the (..., R) losses.

        Args:
            pred, target: (..., R, 4) distances to the left, upper, right and lower side, not negative.
            weight: of each pair, by default 1.
        """
        pred, target = pred.float(), target.float()
        area = _area(pred)
        target_area = _area(target)
        intersection = _area(torch.minimum(pred, target))
        enclosing = _area(torch.maximum(pred, target))
        union = area + target_area - intersection
        iou = (intersection + 1.0) / (union + 1.0)  # 1 for two empty boxes
        if self.loc_loss_type == "iou":
            losses = -iou.log()
        elif self.loc_loss_type == "linear_iou":
            losses = 1 - iou
        else:
            losses = 1 - (iou - (enclosing - union) / enclosing)
        if weight is not None:
            losses = losses * weight
        return losses if reduction == "none" else losses.sum()


def _area(sides: Tensor) -> Tensor:
    return (sides[..., 0] + sides[..., 2]) * (sides[..., 1] + sides[..., 3])
