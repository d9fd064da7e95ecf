"""Models; importing this registers them."""

from centernet.modeling.backbone import left_out
from centernet.modeling.backbone.fpn_p5 import build_p35_resnet_fpn_backbone, build_p67_resnet_fpn_backbone
from centernet.modeling.dense_heads.centernet import CenterNet
from centernet.modeling.dense_heads.centernet_head import CenterNetHead
from centernet.modeling.meta_arch.centernet_detector import CenterNetDetector
from centernet.modeling.roi_heads.custom_fast_rcnn import CustomFastRCNNOutputLayers
from centernet.modeling.roi_heads.custom_roi_heads import CustomCascadeROIHeads, CustomROIHeads

__all__ = [
    "CenterNet",
    "CenterNetDetector",
    "CenterNetHead",
    "CustomCascadeROIHeads",
    "CustomFastRCNNOutputLayers",
    "CustomROIHeads",
    "build_p35_resnet_fpn_backbone",
    "build_p67_resnet_fpn_backbone",
    "left_out",
]
