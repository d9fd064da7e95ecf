"""Feature pyramids on a ResNet whose coarsest levels come from ``p5``."""

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7

__all__ = ["LastLevelP6P7_P5", "build_p35_resnet_fpn_backbone", "build_p67_resnet_fpn_backbone"]


class LastLevelP6P7_P5(LastLevelP6P7):  # noqa: N801  the published name
    """``p6`` and ``p7`` by 3×3 convolutions of stride 2 from ``p5``, the pyramid's own output."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, in_feature="p5")


def _resnet_fpn(cfg: CfgNode, input_shape: ShapeSpec, top_block: nn.Module | None) -> FPN:
    node = cfg.MODEL.FPN
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=node.IN_FEATURES,
        out_channels=node.OUT_CHANNELS,
        norm=node.NORM,
        top_block=top_block,
        fuse_type=node.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_p67_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Levels ``p3`` to ``p7`` with ``MODEL.FPN.IN_FEATURES`` res3, res4, res5."""
    return _resnet_fpn(cfg, input_shape, LastLevelP6P7_P5(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_p35_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Levels ``p3`` to ``p5`` only."""
    return _resnet_fpn(cfg, input_shape, None)
