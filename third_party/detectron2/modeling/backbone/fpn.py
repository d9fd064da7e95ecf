"""Feature pyramid networks (arXiv 1612.03144) on any backbone."""

from collections.abc import Sequence

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers.batch_norm import get_norm
from detectron2.layers.blocks import Norm
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import Conv2d
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import build_resnet_backbone

__all__ = [
    "FPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
]


class FPN(Backbone):
    """Pyramid of maps of equal width, each enriched from the coarser ones.

    Outputs ``p<k>`` of stride 2^k for each input feature of that stride, then those of the top block. Children are
    ``bottom_up``, ``fpn_lateral<k>`` (1×1), ``fpn_output<k>`` (3×3) and ``top_block``.

    Args:
        bottom_up: the backbone below.
        in_features: its features to use, from fine to coarse, each of twice the stride of the one before.
        out_channels: width of all outputs.
        norm: of lateral and output convolutions, which have a bias only without one.
        top_block: makes coarser levels, called with one map and returning a list of ``num_levels``. The map is the
            one that its ``in_feature`` names, of ``bottom_up`` if it is there, otherwise of this pyramid.
        fuse_type: ``sum`` of the lateral map and the upsampled coarser one, or their ``avg``.
        square_pad: side of the square to which images are to be padded; not positive for none.
    Raises:
        ValueError: unknown features or fuse type, or strides that do not double.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: Norm = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        levels = _levels(in_features, shapes)
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"FPN fuse type is {fuse_type!r}, expected 'sum' or 'avg' (MODEL.FPN.FUSE_TYPE)")

        lateral_convs, output_convs = [], []
        for level, name in zip(levels, in_features, strict=True):
            lateral = _conv(shapes[name].channels, out_channels, 1, norm)
            output = _conv(out_channels, out_channels, 3, norm)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            lateral_convs.append(lateral)
            output_convs.append(output)
        # Plain lists, since the modules are registered above; coarse to fine, in the order of use.
        self.lateral_convs = lateral_convs[::-1]
        self.output_convs = output_convs[::-1]
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up

        if top_block is not None:
            levels = levels + list(range(levels[-1] + 1, levels[-1] + 1 + top_block.num_levels))
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = shapes[in_features[-1]].stride
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest input; the levels of the top block take any size."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps ``p<k>`` (N, out_channels, H / 2^k, W / 2^k), fine to coarse, of images ``x`` (N, C, H, W)."""
        features = self.bottom_up(x)
        results = []  # coarse to fine
        fused = None
        for name, lateral, output in zip(self.in_features[::-1], self.lateral_convs, self.output_convs, strict=True):
            current = lateral(features[name])
            if fused is not None:
                current = current + F.interpolate(fused, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    current = current / 2
            fused = current
            results.append(output(fused))
        results.reverse()
        if self.top_block is not None:
            available = dict(zip(self._out_features, results, strict=False)) | dict(features)
            results.extend(self.top_block(available[self.top_block.in_feature]))
        return dict(zip(self._out_features, results, strict=True))


def _conv(in_channels: int, out_channels: int, kernel: int, norm: Norm) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
    )
    c2_xavier_fill(conv)
    return conv


def _levels(in_features: Sequence[str], shapes: dict[str, ShapeSpec]) -> list[int]:
    """Binary logarithms of the strides of ``in_features``."""
    missing = [name for name in in_features if name not in shapes]
    if missing or not in_features:
        raise ValueError(
            f"FPN inputs {list(in_features)} (MODEL.FPN.IN_FEATURES): expected some of the features that the "
            f"backbone below returns, {', '.join(shapes)}"
        )
    strides = [shapes[name].stride for name in in_features]
    levels = [int(stride).bit_length() - 1 for stride in strides]
    expected = list(range(levels[0], levels[0] + len(levels)))
    if levels != expected or any(2**level != stride for level, stride in zip(levels, strides, strict=True)):
        raise ValueError(
            f"strides of the FPN inputs {list(in_features)} are {strides}, expected powers of two, each twice "
            f"the one before"
        )
    return levels


class LastLevelMaxPool(nn.Module):
    """Makes ``p6`` by taking every second position of ``p5``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class LastLevelP6P7(nn.Module):
    """Makes ``p6`` and ``p7`` by 3×3 convolutions of stride 2 (RetinaNet), by default from ``res5``."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for conv in (self.p6, self.p7):
            c2_xavier_fill(conv)

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


def _fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """`FPN` on a ResNet, with ``p6`` by max-pooling."""
    return _fpn(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """`FPN` on a ResNet, with ``p6`` and ``p7`` by convolutions from ``res5``."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    in_channels = bottom_up.output_shape()["res5"].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(in_channels, cfg.MODEL.FPN.OUT_CHANNELS))
