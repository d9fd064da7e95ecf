"""Boxes as offsets from other boxes, and the losses on them."""

import math
from collections.abc import Sequence

import torch
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from detectron2.layers.losses import ciou_loss, diou_loss
from detectron2.layers.wrappers import cat
from detectron2.structures.boxes import Boxes
from detectron2.utils.left_out import left_out

# Larger decoded sides, from a deltas of log(1000 / 16) on, are cut: exp() would overflow in early training.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)

_DECODED_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}

__getattr__ = left_out(__name__, "Box2BoxTransformLinear", "Box2BoxTransformRotated")


class Box2BoxTransform:
    """The R-CNN encoding: shift of the centre relative to the source's size, and logarithm of the ratio of sizes."""

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        """
        Args:
            weights: factors on (dx, dy, dw, dh), which bring them to unit scale.
            scale_clamp: largest dw and dh, after removal of the weight, that decoding accepts.
        """
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4) deltas that turn source boxes into target boxes, both (N, 4) XYXY; source sides must be positive."""
        assert isinstance(src_boxes, Tensor), f"expected a tensor of boxes, got {type(src_boxes).__name__}"
        assert isinstance(target_boxes, Tensor), f"expected a tensor of boxes, got {type(target_boxes).__name__}"
        source_size = src_boxes[:, 2:] - src_boxes[:, :2]
        target_size = target_boxes[:, 2:] - target_boxes[:, :2]
        assert (source_size[:, 0] > 0).all().item(), "source boxes of a box regression must have positive widths"
        source_centre = src_boxes[:, :2] + 0.5 * source_size
        target_centre = target_boxes[:, :2] + 0.5 * target_size
        shift = (target_centre - source_centre) / source_size
        growth = torch.log(target_size / source_size)
        return torch.cat((shift, growth), dim=1) * shift.new_tensor(self.weights)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(N, 4k) float32 boxes decoded from ``deltas`` (N, 4k), k different ones for each of ``boxes`` (N, 4)."""
        deltas = deltas.float()  # exp() of half precision overflows
        boxes = boxes.to(deltas.dtype)
        size = (boxes[:, 2:] - boxes[:, :2])[:, None]  # (N, 1, 2)
        centre = boxes[:, None, :2] + 0.5 * size
        groups = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4) / deltas.new_tensor(self.weights)
        decoded_centre = groups[..., :2] * size + centre
        decoded_size = groups[..., 2:].clamp(max=self.scale_clamp).exp() * size
        corners = (decoded_centre - 0.5 * decoded_size, decoded_centre + 0.5 * decoded_size)
        return torch.cat(corners, dim=2).reshape(deltas.shape)


def _dense_box_regression_loss(
    anchors: Sequence[Boxes | Tensor],
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    fg_mask: Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """Sum of the box losses of foreground anchors in dense predictions.

    Args:
        anchors: per level (R_l, 4), the same for all images; R is their sum.
        pred_anchor_deltas: per level (N, R_l, 4) for N images.
        gt_boxes: per image (R, 4), the box each anchor should predict.
        fg_mask: (N, R) bool, which anchors count.
        box_reg_loss_type: ``smooth_l1`` compares deltas; ``giou``, ``diou`` and ``ciou`` compare decoded boxes.
        smooth_l1_beta: where smooth L1 turns from a parabola into a line; 0 is L1.
    """
    corners = cat([each.tensor if isinstance(each, Boxes) else each for each in anchors])  # (R, 4)
    source = corners.expand(len(gt_boxes), -1, -1)[fg_mask]
    target = torch.stack(list(gt_boxes))[fg_mask]
    deltas = cat(list(pred_anchor_deltas), dim=1)[fg_mask]
    if box_reg_loss_type == "smooth_l1":
        encoded = box2box_transform.get_deltas(source, target)
        return smooth_l1_loss(deltas, encoded, beta=smooth_l1_beta, reduction="sum")
    if box_reg_loss_type in _DECODED_LOSSES:
        decoded = box2box_transform.apply_deltas(deltas, source)
        return _DECODED_LOSSES[box_reg_loss_type](decoded, target, reduction="sum")
    raise ValueError(f"BBOX_REG_LOSS_TYPE is {box_reg_loss_type!r}; expected smooth_l1, {', '.join(_DECODED_LOSSES)}")
