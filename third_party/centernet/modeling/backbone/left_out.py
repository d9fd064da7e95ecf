"""Backbones of CenterNet2 that this package does not have: their names are known, and say so when they are built."""

from typing import NoReturn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

__all__ = ["LEFT_OUT"]

LEFT_OUT = (
    "build_resnet_bifpn_backbone",
    "build_p37_dla_bifpn_backbone",
    "build_fcos_resnet_bifpn_backbone",
    "build_p35_fcos_resnet_bifpn_backbone",
    "build_p35_fcos_dla_bifpn_backbone",
    "build_p37_fcos_dla_bifpn_backbone",
    "build_dla_backbone",
    "build_retinanet_dla_fpn_backbone",
    "build_dla_fpn3_backbone",
    "build_dla_fpn5_backbone",
    "build_dlaup_backbone",
    "build_res2net_backbone",
    "build_p67_res2net_fpn_backbone",
    "build_res2net_bifpn_backbone",
)


def _register(name: str) -> None:
    def build(cfg: CfgNode, input_shape: ShapeSpec) -> NoReturn:
        raise NotImplementedError(
            f"{name} (MODEL.BACKBONE.NAME): the DLA, Res2Net and BiFPN backbones of CenterNet2 are not part of this "
            f"package; use build_p67_resnet_fpn_backbone or build_p35_resnet_fpn_backbone, or register your own"
        )

    build.__name__ = name
    BACKBONE_REGISTRY.register(build)


for _name in LEFT_OUT:
    _register(_name)
