"""From pooled region features to the vector that the box predictor reads."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.batch_norm import get_norm
from detectron2.layers.blocks import Norm
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import Conv2d
from detectron2.utils.registry import Registry

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = """
Modules made as ``cls(cfg, input_shape)`` with the `ShapeSpec` of pooled features; ``output_shape`` is that of what
they return.
"""


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The module that ``MODEL.ROI_BOX_HEAD.NAME`` names.

    Raises:
        KeyError: no box head of that name is registered.
    """
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3×3 convolutions, then fully connected layers, each followed by ReLU."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm: Norm = ""
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of the pooled features.
            conv_dims: output channels of each convolution.
            fc_dims: outputs of each fully connected layer.
            conv_norm: as in ``get_norm``.
        """
        super().__init__()
        if not conv_dims and not fc_dims:
            raise ValueError("FastRCNNConvFCHead has no layers: set MODEL.ROI_BOX_HEAD.NUM_CONV or NUM_FC")
        shape = ShapeSpec(channels=input_shape.channels, height=input_shape.height, width=input_shape.width)
        for k, dim in enumerate(conv_dims, start=1):
            conv = Conv2d(
                shape.channels,
                dim,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, dim),
                activation=F.relu,
            )
            c2_msra_fill(conv)
            self.add_module(f"conv{k}", conv)
            shape.channels = dim
        for k, dim in enumerate(fc_dims, start=1):
            if k == 1:
                self.add_module("flatten", nn.Flatten())
            fc = nn.Linear(shape.channels * (shape.height or 1) * (shape.width or 1), dim)
            c2_xavier_fill(fc)
            self.add_module(f"fc{k}", fc)
            self.add_module(f"fc_relu{k}", nn.ReLU())
            shape = ShapeSpec(channels=dim)
        self._output_shape = shape

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        settings = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [settings.CONV_DIM] * settings.NUM_CONV,
            "fc_dims": [settings.FC_DIM] * settings.NUM_FC,
            "conv_norm": settings.NORM,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, H, W) pooled features → (R, channels of the last layer), or a map without fully connected layers."""
        return super().forward(x)

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels, and height and width of a map."""
        return self._output_shape
