"""Heads of the C4 models: the last stage of ResNet runs on every region."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import cat
from detectron2.modeling.backbone.resnet import make_stage
from detectron2.modeling.backbone.resnet_blocks import BottleneckBlock
from detectron2.modeling.input_features import the_features
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.modeling.roi_heads.sampled_heads import ROI_HEADS_REGISTRY, ROIHeads, select_foreground_proposals
from detectron2.structures.boxes import Boxes
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances

_RES5_IS = 8  # times as wide as res2


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """Box and mask heads that share the ``res5`` stage of ResNet, applied to pooled regions."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps to pool from.
            res5: from pooled features to those that the predictor (averaged over positions) and mask head read.
            kwargs: arguments of `ROIHeads`.
        """
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor
        self.mask_on = mask_head is not None
        if mask_head is not None:
            self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shapes = the_features(input_shape, in_features, "MODEL.ROI_HEADS.IN_FEATURES")
        if len(shapes) != 1:
            raise ValueError(f"MODEL.ROI_HEADS.IN_FEATURES is {in_features}; Res5ROIHeads takes one feature map")
        if cfg.MODEL.KEYPOINT_ON:
            raise ValueError("MODEL.KEYPOINT_ON is set, but Res5ROIHeads has no keypoint head")
        settings = cfg.MODEL.ROI_BOX_HEAD
        resolution = settings.POOLER_RESOLUTION
        res5, channels = cls._build_res5_block(cfg)
        result = super().from_config(cfg) | {
            "in_features": in_features,
            "pooler": ROIPooler(
                output_size=resolution,
                scales=(1.0 / shapes[0].stride,),
                sampling_ratio=settings.POOLER_SAMPLING_RATIO,
                pooler_type=settings.POOLER_TYPE,
            ),
            "res5": res5,
            "box_predictor": FastRCNNOutputLayers(cfg, ShapeSpec(channels=channels, height=1, width=1)),
        }
        if cfg.MODEL.MASK_ON:
            result["mask_head"] = build_mask_head(
                cfg, ShapeSpec(channels=channels, width=resolution, height=resolution)
            )
        return result

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        """The stage, and the number of channels of its output."""
        settings = cfg.MODEL.RESNETS
        if settings.DEFORM_ON_PER_STAGE[-1]:
            raise ValueError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: the res5 stage of Res5ROIHeads cannot be deformable")
        channels = settings.RES2_OUT_CHANNELS * _RES5_IS
        blocks = make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=channels // 2,
            out_channels=channels,
            bottleneck_channels=settings.NUM_GROUPS * settings.WIDTH_PER_GROUP * _RES5_IS,
            num_groups=settings.NUM_GROUPS,
            norm=settings.NORM,
            stride_in_1x1=settings.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), channels

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """(R, C, H, W) outputs of ``res5`` on the regions of all images."""
        return self.res5(self.pooler(features, boxes))

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if self.training:
            assert targets is not None, "Res5ROIHeads needs ground truth in training: 'instances' in each input"
            proposals = self.label_and_sample_proposals(proposals, targets)
        maps = [features[name] for name in self.in_features]
        box_features = self._shared_roi_transform(maps, [each.proposal_boxes for each in proposals])
        predictions = self.box_predictor(box_features.mean(dim=(2, 3)))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on:
            foreground, masks = select_foreground_proposals(proposals, self.num_classes)
            losses |= self.mask_head(box_features[cat(masks)], foreground)
        return [], losses

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: Sequence[Instances]) -> list[Instances]:
        """Set ``pred_masks`` of instances with ``pred_boxes`` and ``pred_classes``, if there is a mask head."""
        assert not self.training, "forward_with_given_boxes() is for models in evaluation mode"
        assert all(each.has("pred_boxes") and each.has("pred_classes") for each in instances)
        instances = list(instances)
        if not self.mask_on:
            return instances
        maps = [features[name] for name in self.in_features]
        return self.mask_head(self._shared_roi_transform(maps, [each.pred_boxes for each in instances]), instances)
