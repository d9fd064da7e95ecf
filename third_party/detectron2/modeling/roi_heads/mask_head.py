"""Masks of regions (Mask R-CNN, arXiv 1703.06870)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.batch_norm import get_norm
from detectron2.layers.blocks import Norm
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import Conv2d, ConvTranspose2d, cat
from detectron2.structures.instances import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
ROI_MASK_HEAD_REGISTRY.__doc__ = """
Modules made as ``cls(cfg, input_shape)`` with the `ShapeSpec` of pooled features. Called with those and the instances
of each image, they return a dict of losses in training, otherwise the instances with ``pred_masks``.
"""


def build_mask_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The module that ``MODEL.ROI_MASK_HEAD.NAME`` names.

    Raises:
        KeyError: no mask head of that name is registered.
    """
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: Sequence[Instances], vis_period: int = 0) -> Tensor:
    """Mean binary cross entropy of the masks of the true classes; a differentiable 0 without regions.

    Puts accuracy, false positives and false negatives into the event storage.

    Args:
        pred_mask_logits: (R, K, S, S), or (R, 1, S, S) for masks that do not depend on the class.
        instances: per image the foreground regions: ``proposal_boxes``, ``gt_classes``, ``gt_masks``; R in all.
        vis_period: iterations between pictures of predicted and true masks in the event storage; 0 for none.
    Raises:
        ValueError: regions without ``gt_masks``.
    """
    size = pred_mask_logits.shape[-1]
    assert pred_mask_logits.shape[-2] == size, f"masks must be square, got {tuple(pred_mask_logits.shape)}"
    classes, masks = [], []
    for each in instances:
        if len(each) == 0:
            continue
        if not each.has("gt_masks"):
            raise ValueError(
                "the mask loss got ground truth without 'gt_masks': its data set needs a segmentation for each object, "
                "or set MODEL.MASK_ON to False"
            )
        classes.append(each.gt_classes)
        masks.append(each.gt_masks.crop_and_resize(each.proposal_boxes.tensor, size).to(pred_mask_logits.device))
    if not masks:
        return pred_mask_logits.sum() * 0
    target = cat(masks)  # (R, S, S)
    logits = pred_mask_logits[:, 0]
    if pred_mask_logits.shape[1] > 1:
        logits = pred_mask_logits[torch.arange(len(target), device=target.device), cat(classes).long()]

    truth = target if target.dtype == torch.bool else target > 0.5
    _log_mask_stats(logits, truth)
    if vis_period > 0 and get_event_storage().iter % vis_period == 0:
        _put_pictures(logits, truth)
    return F.binary_cross_entropy_with_logits(logits, target.to(torch.float32), reduction="mean")


def _log_mask_stats(logits: Tensor, truth: Tensor) -> None:
    wrong = (logits > 0) != truth
    counts = torch.stack((wrong.sum(), truth.sum(), (wrong & truth).sum())).tolist()
    num_wrong, num_inside, num_missed = counts
    total = truth.numel()
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - num_wrong / max(total, 1))
    storage.put_scalar("mask_rcnn/false_positive", (num_wrong - num_missed) / max(total - num_inside, 1))
    storage.put_scalar("mask_rcnn/false_negative", num_missed / max(num_inside, 1))


def _put_pictures(logits: Tensor, truth: Tensor) -> None:
    storage = get_event_storage()
    pairs = torch.cat((logits.detach().float().sigmoid(), truth.float()), dim=2)  # (R, S, 2 S)
    for i, pair in enumerate(pairs):
        storage.put_image(f"Left: mask prediction;   Right: mask GT ({i})", pair.expand(3, -1, -1))


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: Sequence[Instances]) -> None:
    """Set ``pred_masks``, (R_i, 1, S, S) probabilities, of each image's instances.

    Args:
        pred_mask_logits: (R, K, S, S), or (R, 1, S, S) for masks that do not depend on the class.
        pred_instances: ``pred_classes`` of each image, R in all.
    """
    if not pred_instances:
        return
    logits = pred_mask_logits
    if logits.shape[1] > 1:
        classes = cat([each.pred_classes for each in pred_instances]).long()
        logits = logits[torch.arange(len(classes), device=classes.device), classes][:, None]
    probs = logits.sigmoid().split([len(each) for each in pred_instances])
    for each, masks in zip(pred_instances, probs, strict=True):
        each.pred_masks = masks


class BaseMaskRCNNHead(nn.Module):
    """Loss and inference of mask heads; subclasses define ``layers``, from pooled features to mask logits."""

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0) -> None:
        """``vis_period``: iterations between pictures of masks in the event storage; 0 for none."""
        super().__init__()
        self.loss_weight = loss_weight
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {"vis_period": cfg.VIS_PERIOD}

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """``{"loss_mask": …}`` in training, otherwise the instances with ``pred_masks``.

        Args:
            x: (R, C, H, W) pooled features of all images' regions.
            instances: those regions per image; see `mask_rcnn_loss` and `mask_rcnn_inference`.
        """
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: Tensor) -> Tensor:
        """Mask logits (R, K or 1, S, S)."""
        raise NotImplementedError(f"{type(self).__name__} must define layers(x)")


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):
    """3×3 convolutions, a 2×2 transposed one that doubles the size, and a 1×1 one to the logits."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, conv_dims: Sequence[int], conv_norm: Norm = "", **kwargs: Any
    ) -> None:
        """
        Args:
            num_classes: masks for each region; 1 if they do not depend on the class.
            conv_dims: output channels of the 3×3 convolutions and, last, of the transposed one.
            conv_norm: as in ``get_norm``.
            kwargs: arguments of `BaseMaskRCNNHead`.
        """
        super().__init__(**kwargs)
        if not conv_dims:
            raise ValueError("MaskRCNNConvUpsampleHead needs conv_dims, at least of its transposed convolution")
        widths = [input_shape.channels, *conv_dims]
        for k, (before, after) in enumerate(zip(widths[:-2], conv_dims[:-1], strict=True), start=1):
            conv = Conv2d(
                before,
                after,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, after),
                activation=F.relu,
            )
            c2_msra_fill(conv)
            self.add_module(f"mask_fcn{k}", conv)
        self.deconv = ConvTranspose2d(widths[-2], widths[-1], kernel_size=2, stride=2)
        c2_msra_fill(self.deconv)
        self.add_module("deconv_relu", nn.ReLU())
        self.predictor = Conv2d(widths[-1], num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        settings = cfg.MODEL.ROI_MASK_HEAD
        return super().from_config(cfg, input_shape) | {
            "input_shape": input_shape,
            "conv_dims": [settings.CONV_DIM] * (settings.NUM_CONV + 1),
            "conv_norm": settings.NORM,
            "num_classes": 1 if settings.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        }

    def layers(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x
