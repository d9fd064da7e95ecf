"""ResNet and its config: depths 18 to 152, basic, bottleneck and deformable blocks."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers.blocks import CNNBlockBase
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet_blocks import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

ResNetBlockBase = CNNBlockBase

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_SHALLOW = (18, 34)  # built of `BasicBlock`


class ResNet(Backbone):
    """A stem and residual stages ``res2``, ``res3``, … (deeper stages than the outputs need are not built).

    Args:
        stem: from images to features, with an attribute ``stride``.
        stages: blocks of each stage, each block with attributes ``stride`` and ``out_channels``.
        num_classes: adds average pooling and a classifier ``linear``; None for none.
        out_features: names among ``stem``, ``res2``… and ``linear``; default the last one.
        freeze_at: see `freeze`.
    Raises:
        ValueError: an empty stage, or an output that there is not.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        names = [f"res{i}" for i in range(2, 2 + len(stages))]
        available = ["stem", *names, *(["linear"] if num_classes is not None else [])]
        if out_features is None:
            out_features = available[-1:]
        unknown = [name for name in out_features if name not in available]
        if unknown or not out_features:
            raise ValueError(f"ResNet outputs {list(out_features)}: expected some of {', '.join(available)}")
        if "linear" not in out_features:
            stages = stages[: max(available.index(name) for name in out_features)]

        self.stem = stem
        channels = {"stem": stem.out_channels}
        strides = {"stem": stem.stride}
        self.stage_names = tuple(names[: len(stages)])
        self.stages: list[nn.Sequential] = []  # a plain list: each stage is registered under its own name
        channel, stride = stem.out_channels, stem.stride
        for name, blocks in zip(self.stage_names, stages, strict=True):
            if not blocks:
                raise ValueError(f"ResNet stage {name} has no blocks, expected at least one")
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            self.stages.append(stage)
            for block in blocks:
                stride *= block.stride
            channel = blocks[-1].out_channels
            channels[name], strides[name] = channel, stride
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channel, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)  # Goyal et al., arXiv 1706.02677, section 5.1
            channels["linear"], strides["linear"] = num_classes, stride

        self._out_features = list(out_features)
        self._out_feature_channels = channels
        self._out_feature_strides = strides
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The requested outputs of images ``x`` (N, C, H, W), from shallow to deep; ``linear`` is (N, num_classes)."""
        assert x.dim() == 4, f"ResNet takes an input of shape (N, C, H, W), got {tuple(x.shape)}"
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = stage(x)
            if name in self._out_features:
                outputs[name] = x
        if self.num_classes is not None:
            x = self.linear(self.avgpool(x).flatten(1))
            if "linear" in self._out_features:
                outputs["linear"] = x
        return outputs

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Stop training the first parts: 1 is the stem, 2 the stem and ``res2``, and so on; 0 is nothing.

        Their batch norms become `FrozenBatchNorm2d`. Returns the model itself.
        """
        if freeze_at >= 1:
            self.stem.freeze()
        for stage in self.stages[: max(freeze_at - 1, 0)]:
            for block in stage.children():
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: Callable[..., CNNBlockBase],
        num_blocks: int,
        *,
        in_channels: int,
        out_channels: int,
        **kwargs: Any,
    ) -> list[CNNBlockBase]:
        """The blocks of one stage; only the first takes ``in_channels``, the others ``out_channels``.

        Args:
            kwargs: further arguments of the blocks. ``NAME_per_block`` is a list with the argument ``NAME`` of each.
        Raises:
            ValueError: such a list has not one entry per block, or ``NAME`` is given as well.
        """
        per_block, shared = {}, {}
        for key, value in kwargs.items():
            name = key.removesuffix("_per_block")
            if name == key:
                shared[key] = value
            elif len(value) != num_blocks:
                raise ValueError(f"{key} is {value}, expected {num_blocks} entries, one for each block of the stage")
            elif name in kwargs:
                raise ValueError(f"both {name} and {key} are given to make_stage, expected one of them")
            else:
                per_block[name] = value
        return [
            block_class(
                in_channels=in_channels if i == 0 else out_channels,
                out_channels=out_channels,
                **shared,
                **{name: values[i] for name, values in per_block.items()},
            )
            for i in range(num_blocks)
        ]

    @staticmethod
    def make_default_stages(
        depth: int, block_class: Callable[..., CNNBlockBase] | None = None, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """The four stages of the ResNet of ``depth`` layers (18, 34, 50, 101 or 152), with the usual widths.

        Args:
            block_class: default `BasicBlock` for 18 and 34, `BottleneckBlock` for the others.
            kwargs: further arguments of all blocks, such as ``norm``.
        Raises:
            ValueError: another depth.
        """
        if depth not in _BLOCKS_PER_STAGE:
            raise ValueError(f"no ResNet of depth {depth}, expected one of {', '.join(map(str, _BLOCKS_PER_STAGE))}")
        shallow = depth in _SHALLOW
        if block_class is None:
            block_class = BasicBlock if shallow else BottleneckBlock
        in_channels, out_channels = 64, 64 if shallow else 256
        stages = []
        for i, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth]):
            options = dict(kwargs)
            if not shallow:
                options["bottleneck_channels"] = out_channels // 4
            stages.append(
                ResNet.make_stage(
                    block_class,
                    num_blocks,
                    stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
                    in_channels=in_channels,
                    out_channels=out_channels,
                    **options,
                )
            )
            in_channels, out_channels = out_channels, out_channels * 2
        return stages


make_stage = ResNet.make_stage


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A `ResNet` from ``MODEL.RESNETS`` and ``MODEL.BACKBONE.FREEZE_AT``.

    Raises:
        ValueError: settings that do not go together; the message names their keys.
    """
    settings = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, settings.STEM_OUT_CHANNELS, settings.NORM)
    if settings.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION is {settings.RES5_DILATION}, expected 1 or 2")
    stages = stages_from_config(cfg, dilations=(1, 1, 1, settings.RES5_DILATION))
    return ResNet(stem, stages, out_features=settings.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def stages_from_config(
    cfg: CfgNode, dilations: Sequence[int], res5_multi_grid: Sequence[int] | None = None
) -> list[list[CNNBlockBase]]:
    """The blocks of ``res2`` to the deepest stage among ``MODEL.RESNETS.OUT_FEATURES``, as that node describes them.

    Args:
        dilations: of ``res2`` to ``res5``. A dilated stage has stride 1.
        res5_multi_grid: factors on the dilation of each block of ``res5``, which do not change its stride.
    Raises:
        ValueError: settings that do not go together; the message names their keys.
    """
    settings = cfg.MODEL.RESNETS
    _check_config(settings, dilations)
    depth = settings.DEPTH
    in_channels, out_channels = settings.STEM_OUT_CHANNELS, settings.RES2_OUT_CHANNELS
    bottleneck_channels = settings.NUM_GROUPS * settings.WIDTH_PER_GROUP
    stages = []
    for i, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth][: _num_stages(settings.OUT_FEATURES)]):
        first_stride = 1 if i == 0 or dilations[i] > 1 else 2
        options: dict[str, Any] = {"stride_per_block": [first_stride] + [1] * (num_blocks - 1), "norm": settings.NORM}
        block_class: type[CNNBlockBase] = BasicBlock
        if depth not in _SHALLOW:
            grid = res5_multi_grid if i == 3 and res5_multi_grid is not None else [1] * num_blocks
            if len(grid) != num_blocks:
                raise ValueError(
                    f"MODEL.RESNETS.RES5_MULTI_GRID is {list(grid)}, expected {num_blocks} factors, one for each block"
                )
            block_class = BottleneckBlock
            options |= {
                "bottleneck_channels": bottleneck_channels,
                "stride_in_1x1": settings.STRIDE_IN_1X1,
                "num_groups": settings.NUM_GROUPS,
                "dilation_per_block": [dilations[i] * factor for factor in grid],
            }
        if settings.DEFORM_ON_PER_STAGE[i]:
            block_class = DeformBottleneckBlock
            options |= {
                "deform_modulated": settings.DEFORM_MODULATED,
                "deform_num_groups": settings.DEFORM_NUM_GROUPS,
            }
        stages.append(
            make_stage(block_class, num_blocks, in_channels=in_channels, out_channels=out_channels, **options)
        )
        in_channels, out_channels, bottleneck_channels = out_channels, out_channels * 2, bottleneck_channels * 2
    return stages


def _num_stages(out_features: Sequence[str]) -> int:
    """How many stages the outputs need; names that are no stage are left to `ResNet` to judge."""
    stages = ["res2", "res3", "res4", "res5"]
    return max((stages.index(name) + 1 for name in out_features if name in stages), default=0)


def _check_config(settings: CfgNode, dilations: Sequence[int]) -> None:
    """Settings that do not go together are an error here, not one deep inside a layer."""
    prefix = "MODEL.RESNETS."
    if settings.DEPTH not in _BLOCKS_PER_STAGE:
        known = ", ".join(map(str, _BLOCKS_PER_STAGE))
        raise ValueError(f"{prefix}DEPTH is {settings.DEPTH}, expected one of {known}")
    if len(settings.DEFORM_ON_PER_STAGE) != 4:
        raise ValueError(
            f"{prefix}DEFORM_ON_PER_STAGE is {settings.DEFORM_ON_PER_STAGE}, expected four values, for res2 to res5"
        )
    if settings.DEPTH not in _SHALLOW:
        return
    for key, found, expected in (
        ("RES2_OUT_CHANNELS", settings.RES2_OUT_CHANNELS, 64),
        ("DEFORM_ON_PER_STAGE", list(settings.DEFORM_ON_PER_STAGE), [False] * 4),
        ("RES5_DILATION", dilations[3], 1),
        ("NUM_GROUPS", settings.NUM_GROUPS, 1),
    ):
        if found != expected:
            raise ValueError(f"{prefix}{key} is {found}, but a ResNet of DEPTH {settings.DEPTH} needs {expected}")
