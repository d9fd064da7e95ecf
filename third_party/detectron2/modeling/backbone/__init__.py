"""Feature extractors: the interface, ResNet, FPN, and the registry of their builders."""

from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import ResNet, ResNetBlockBase, build_resnet_backbone, make_stage
from detectron2.utils.left_out import left_out

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "ResNet",
    "ResNetBlockBase",
    "build_backbone",
    "build_resnet_backbone",
    "make_stage",
]

LEFT_OUT = (
    "MViT",
    "RegNet",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "ViT",
    "get_vit_lr_decay_rate",
)

__getattr__ = left_out(__name__, *LEFT_OUT)
