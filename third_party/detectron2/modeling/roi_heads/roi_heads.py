"""Heads on the regions of a feature pyramid."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.modeling.input_features import common_channels, the_features
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.box_head import build_box_head
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.modeling.roi_heads.res5_heads import Res5ROIHeads
from detectron2.modeling.roi_heads.sampled_heads import (
    ROI_HEADS_REGISTRY,
    ROIHeads,
    build_roi_heads,
    select_foreground_proposals,
)
from detectron2.structures.boxes import Boxes
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances
from detectron2.utils.left_out import left_out, needs_real_detectron2

__all__ = [
    "ROI_HEADS_REGISTRY",
    "ROIHeads",
    "Res5ROIHeads",
    "StandardROIHeads",
    "build_roi_heads",
    "select_foreground_proposals",
]

__getattr__ = left_out(__name__, "select_proposals_with_visible_keypoints")


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """A box head and a mask head, each with its own pooler; the mask head runs on the outcome of the box head."""

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        keypoint_in_features: list[str] | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            box_in_features: names of the feature maps that ``box_pooler`` pools from, finest first.
            box_head: from pooled features to those that ``box_predictor`` reads.
            mask_in_features: names of the feature maps for masks; None for no masks.
            mask_pooler: None to hand the mask head the feature maps by name.
            keypoint_in_features, keypoint_pooler, keypoint_head: must be None.
            train_on_pred_boxes: train the mask head on predicted boxes, not on proposals.
            kwargs: arguments of `ROIHeads`.
        """
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_on = mask_in_features is not None
        if self.mask_on:
            self.mask_in_features = mask_in_features
            self.mask_pooler = mask_pooler
            self.mask_head = mask_head
        if any(each is not None for each in (keypoint_in_features, keypoint_pooler, keypoint_head)):
            raise needs_real_detectron2("a keypoint head in StandardROIHeads")
        self.keypoint_on = False
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        result = super().from_config(cfg)
        result["train_on_pred_boxes"] = cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
        # A subclass may define one of these as an ordinary method that builds the head in its constructor.
        for init_head in (cls._init_box_head, cls._init_mask_head, cls._init_keypoint_head):
            if inspect.ismethod(init_head):
                result |= init_head(cfg, input_shape)
        return result

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler, pooled_shape = pooler_from_config(cfg.MODEL.ROI_BOX_HEAD, in_features, input_shape)
        box_head = build_box_head(cfg, pooled_shape)
        return {
            "box_in_features": in_features,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": FastRCNNOutputLayers(cfg, box_head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        result: dict[str, Any] = {"mask_in_features": in_features, "mask_pooler": None}
        shape: ShapeSpec | dict[str, ShapeSpec] = {name: input_shape[name] for name in in_features}
        if cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE:
            result["mask_pooler"], shape = pooler_from_config(cfg.MODEL.ROI_MASK_HEAD, in_features, input_shape)
        return result | {"mask_head": build_mask_head(cfg, shape)}

    @classmethod
    def _init_keypoint_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if cfg.MODEL.KEYPOINT_ON:
            raise needs_real_detectron2("MODEL.KEYPOINT_ON")
        return {}

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if not self.training:
            return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
        assert targets is not None, f"{type(self).__name__} needs ground truth in training: 'instances' in each input"
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals)
        # After the box head, which may have replaced the proposals' boxes by predicted ones.
        return proposals, losses | self._forward_mask(features, proposals)

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Set ``pred_masks`` of instances with ``pred_boxes`` and ``pred_classes``, if there is a mask head."""
        assert not self.training, "forward_with_given_boxes() is for models in evaluation mode"
        assert all(each.has("pred_boxes") and each.has("pred_classes") for each in instances), (
            "forward_with_given_boxes() takes instances with pred_boxes and pred_classes"
        )
        return self._forward_mask(features, instances)

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, otherwise detections."""
        maps = [features[name] for name in self.box_in_features]
        predictions = self.box_predictor(self.box_head(self.box_pooler(maps, [p.proposal_boxes for p in proposals])))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return detections
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                predicted = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for each, boxes in zip(proposals, predicted, strict=True):
                each.proposal_boxes = Boxes(boxes)
        return losses

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses of the foreground among proposals in training, otherwise the instances with ``pred_masks``."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        if self.mask_pooler is None:
            return self.mask_head({name: features[name] for name in self.mask_in_features}, instances)
        maps = [features[name] for name in self.mask_in_features]
        boxes = [each.proposal_boxes if self.training else each.pred_boxes for each in instances]
        return self.mask_head(self.mask_pooler(maps, boxes), instances)


def pooler_from_config(
    settings: CfgNode, in_features: Sequence[str], input_shape: dict[str, ShapeSpec]
) -> tuple[ROIPooler, ShapeSpec]:
    """The pooler that a head's node, such as ``MODEL.ROI_BOX_HEAD``, describes, and the shape of what it pools."""
    key = "MODEL.ROI_HEADS.IN_FEATURES"
    shapes = the_features(input_shape, in_features, key)
    resolution = settings.POOLER_RESOLUTION
    pooler = ROIPooler(
        output_size=resolution,
        scales=tuple(1.0 / shape.stride for shape in shapes),
        sampling_ratio=settings.POOLER_SAMPLING_RATIO,
        pooler_type=settings.POOLER_TYPE,
    )
    channels = common_channels(shapes, in_features, key)
    return pooler, ShapeSpec(channels=channels, height=resolution, width=resolution)
