"""The network that every pyramid level shares: heatmaps and box distances at every location."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from centernet.modeling.layers.deform_conv import DFConv2d
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm

__all__ = ["CenterNetHead"]


class CenterNetHead(nn.Module):
    """Towers of convolutions, then box distances, and one or both of a class and an object heatmap."""

    @configurable
    def __init__(
        self,
        in_channels: int,
        num_levels: int,
        *,
        num_classes: int = 80,
        with_agn_hm: bool = False,
        only_proposal: bool = False,
        norm: str = "GN",
        num_cls_convs: int = 4,
        num_box_convs: int = 4,
        num_share_convs: int = 0,
        use_deformable: bool = False,
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            with_agn_hm: predict whether there is an object of any class.
            only_proposal: no heatmap of classes; needs ``with_agn_hm``.
            norm: of the towers, "" for none.
            num_share_convs: depth of the tower below the one of classes and the one of boxes.
            use_deformable: the last convolution of each tower is a modulated deformable one.
            prior_prob: probability that the heatmaps start with.
        """
        super().__init__()
        if only_proposal and not with_agn_hm:
            raise ValueError(
                "MODEL.CENTERNET.ONLY_PROPOSAL leaves out the class heatmap: set MODEL.CENTERNET.WITH_AGN_HM to True"
            )
        self.num_classes = num_classes
        self.with_agn_hm = with_agn_hm
        self.only_proposal = only_proposal
        depths = {"cls": 0 if only_proposal else num_cls_convs, "bbox": num_box_convs, "share": num_share_convs}
        for name, depth in depths.items():
            self.add_module(f"{name}_tower", _tower(in_channels, depth, norm, use_deformable))
        self.bbox_pred = _conv(in_channels, 4, bias=8.0)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        prior_logit = -math.log((1 - prior_prob) / prior_prob)
        if with_agn_hm:
            self.agn_hm = _conv(in_channels, 1, bias=prior_logit)
        if not only_proposal:
            self.cls_logits = _conv(in_channels, num_classes, bias=prior_logit)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.CENTERNET
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(
                f"features {list(node.IN_FEATURES)} (MODEL.CENTERNET.IN_FEATURES) have {sorted(channels)} channels; "
                f"all levels share one head: expected one number"
            )
        return {
            "in_channels": channels.pop(),
            "num_levels": len(input_shape),
            "num_classes": node.NUM_CLASSES,
            "with_agn_hm": node.WITH_AGN_HM,
            "only_proposal": node.ONLY_PROPOSAL,
            "norm": node.NORM,
            "num_cls_convs": node.NUM_CLS_CONVS,
            "num_box_convs": node.NUM_BOX_CONVS,
            "num_share_convs": node.NUM_SHARE_CONVS,
            "use_deformable": node.USE_DEFORMABLE,
            "prior_prob": node.PRIOR_PROB,
        }

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor], list[Tensor | None]]:
        """Per level the class logits (B, C, H, W), distances (B, 4, H, W) and object logits (B, 1, H, W).

        Distances to the left, upper, right and lower side are not negative and in units of the level's stride. A
        heatmap that the head does not have is None.
        """
        class_logits: list[Tensor | None] = []
        distances = []
        object_logits: list[Tensor | None] = []
        for features, scale in zip(x, self.scales, strict=True):
            shared = self.share_tower(features)
            boxes = self.bbox_tower(shared)
            class_logits.append(None if self.only_proposal else self.cls_logits(self.cls_tower(shared)))
            object_logits.append(self.agn_hm(boxes) if self.with_agn_hm else None)
            distances.append(F.relu(scale(self.bbox_pred(boxes))))
        return class_logits, distances, object_logits


class Scale(nn.Module):
    """The input times one learned number."""

    def __init__(self, init_value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([init_value]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _tower(channels: int, depth: int, norm: str, deformable_end: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        if deformable_end and i == depth - 1:
            conv: nn.Module = DFConv2d(channels, channels)
            nn.init.normal_(conv.conv.weight, std=0.01)
        else:
            conv = _conv(channels, channels)
        layers.append(conv)
        if norm == "GN":
            layers.append(nn.GroupNorm(32 if channels % 32 == 0 else 25, channels))
        elif norm:
            layers.append(get_norm(norm, channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _conv(in_channels: int, out_channels: int, bias: float = 0.0) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv
