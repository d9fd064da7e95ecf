"""DeepLab's ResNet: a stem of three 3×3 convolutions, and dilated last stages."""

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor

from detectron2.config import CfgNode
from detectron2.layers.batch_norm import get_norm
from detectron2.layers.blocks import CNNBlockBase, Norm
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import Conv2d
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import ResNet, stages_from_config
from detectron2.modeling.backbone.resnet_blocks import BasicStem


class DeepLabStem(CNNBlockBase):
    """Three 3×3 convolutions with ReLU, the first of stride 2, and max-pooling of stride 2: total stride 4.

    The first two have half of ``out_channels``.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 128, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels // 2, norm, stride=2)
        self.conv2 = _conv(out_channels // 2, out_channels // 2, norm)
        self.conv3 = _conv(out_channels // 2, out_channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu_(conv(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def _conv(in_channels: int, out_channels: int, norm: Norm, stride: int = 1) -> Conv2d:
    conv = Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False, norm=get_norm(norm, out_channels))
    c2_msra_fill(conv)
    return conv


_STEMS = {"basic": BasicStem, "deeplab": DeepLabStem}


@BACKBONE_REGISTRY.register()
def build_resnet_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A `ResNet` from ``MODEL.RESNETS`` with the keys of ``add_deeplab_config``.

    Block i of ``res5`` has dilation ``RES5_DILATION * RES5_MULTI_GRID[i]``, so that the default [1, 2, 4] dilates even
    where ``RES5_DILATION`` is 1. A stage whose dilation is above 1 has stride 1.

    Raises:
        ValueError: settings that do not go together; the message names their keys.
    """
    settings = cfg.MODEL.RESNETS
    _check_config(settings)
    stem = _STEMS[settings.STEM_TYPE](input_shape.channels, settings.STEM_OUT_CHANNELS, settings.NORM)
    stages = stages_from_config(
        cfg,
        dilations=(1, 1, settings.RES4_DILATION, settings.RES5_DILATION),
        res5_multi_grid=settings.RES5_MULTI_GRID,
    )
    return ResNet(stem, stages, out_features=settings.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _check_config(settings: CfgNode) -> None:
    allowed = {
        "DEPTH": (50, 101, 152),
        "STEM_TYPE": tuple(_STEMS),
        "RES4_DILATION": (1, 2),
        # With res4 at stride 1, only 4 keeps the spacing that res5 would have at its own stride.
        "RES5_DILATION": (4,) if settings.RES4_DILATION == 2 else (1, 2, 4),
    }
    for key, values in allowed.items():
        if settings[key] not in values:
            because = " where RES4_DILATION is 2" if key == "RES5_DILATION" and len(values) == 1 else ""
            raise ValueError(
                f"MODEL.RESNETS.{key} is {settings[key]!r}, expected {' or '.join(map(repr, values))}{because} "
                f"for build_resnet_deeplab_backbone"
            )
