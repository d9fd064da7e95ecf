"""Feature pyramids: numbers against torchvision, names, top blocks, padding and refused settings."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.ops import FeaturePyramidNetwork

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

REFUSED = (ValueError, AssertionError)


class Pyramid(Backbone):
    """Random maps c2, c3, … of given strides, each a convolution of the averaged image."""

    def __init__(self, strides: tuple[int, ...] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self._out_features = [f"c{i + 2}" for i in range(len(strides))]
        self._out_feature_channels = {name: 4 + i for i, name in enumerate(self._out_features)}
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self.convs = nn.ModuleList(nn.Conv2d(3, channels, 1) for channels in self._out_feature_channels.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        strides = self._out_feature_strides.values()
        maps = [conv(F.avg_pool2d(x, stride)) for conv, stride in zip(self.convs, strides, strict=True)]
        return dict(zip(self._out_features, maps, strict=True))


NAMES = ["c2", "c3", "c4", "c5"]


def test_agrees_with_torchvision() -> None:
    torch.manual_seed(0)
    bottom_up = Pyramid()
    ours = FPN(bottom_up, NAMES, 6, top_block=LastLevelMaxPool())
    channels = [shape.channels for shape in bottom_up.output_shape().values()]
    reference = FeaturePyramidNetwork(channels, 6)
    for i in range(4):
        for part, convs in (("lateral", reference.inner_blocks), ("output", reference.layer_blocks)):
            conv = getattr(ours, f"fpn_{part}{i + 2}")
            nn.init.normal_(conv.bias)
            convs[i][0].load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 64, 96)
    found, expected = ours(x), reference(OrderedDict(bottom_up(x)))
    assert list(found) == ["p2", "p3", "p4", "p5", "p6"]
    for name, value in zip(NAMES, list(found.values())[:4], strict=True):
        assert_close(value, expected[name])
    assert_close(found["p6"], found["p5"][:, :, ::2, ::2])


def test_avg_halves_each_fused_map() -> None:
    torch.manual_seed(0)
    fpn = FPN(Pyramid((4, 8)), ["c2", "c3"], 6, fuse_type="avg")
    x = torch.randn(1, 3, 32, 32)
    maps = fpn.bottom_up(x)
    top = fpn.fpn_lateral3(maps["c3"])
    upsampled = top.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    found = fpn(x)
    assert_close(found["p3"], fpn.fpn_output3(top))
    assert_close(found["p2"], fpn.fpn_output2((fpn.fpn_lateral2(maps["c2"]) + upsampled) / 2))


def test_shapes_strides_and_padding() -> None:
    fpn = FPN(Pyramid(), ["c3", "c4"], 6, top_block=LastLevelP6P7(6, 6, "p4"), square_pad=128)
    shapes = {name: (shape.channels, shape.stride) for name, shape in fpn.output_shape().items()}
    assert shapes == {"p3": (6, 8), "p4": (6, 16), "p5": (6, 32), "p6": (6, 64)}
    assert fpn.size_divisibility == 16  # of the coarsest input; the top block takes any size
    assert fpn.padding_constraints == {"square_size": 128}
    assert FPN(Pyramid(), NAMES, 6).padding_constraints == {"square_size": 0}
    for name, value in fpn(torch.randn(1, 3, 48, 80)).items():
        stride = shapes[name][1]
        assert value.shape == (1, 6, -(-48 // stride), -(-80 // stride))


def test_norm_replaces_the_bias() -> None:
    plain, normed = FPN(Pyramid((4,)), ["c2"], 32), FPN(Pyramid((4,)), ["c2"], 32, norm="GN")
    own = [name for name, _ in plain.named_parameters() if not name.startswith("bottom_up")]
    assert own == ["fpn_lateral2.weight", "fpn_lateral2.bias", "fpn_output2.weight", "fpn_output2.bias"]
    assert [name for name, _ in normed.named_parameters() if name.startswith("fpn_output2")] == [
        "fpn_output2.weight",
        "fpn_output2.norm.weight",
        "fpn_output2.norm.bias",
    ]
    assert torch.count_nonzero(plain.fpn_lateral2.bias) == 0


def test_convolutions_are_listed_from_coarse_to_fine() -> None:
    fpn = FPN(Pyramid(), NAMES, 6)
    assert fpn.lateral_convs == [fpn.fpn_lateral5, fpn.fpn_lateral4, fpn.fpn_lateral3, fpn.fpn_lateral2]
    assert fpn.output_convs == [fpn.fpn_output5, fpn.fpn_output4, fpn.fpn_output3, fpn.fpn_output2]
    assert tuple(fpn.in_features) == tuple(NAMES)


def test_the_top_block_reads_the_backbone_first_and_the_pyramid_otherwise() -> None:
    x = torch.randn(1, 3, 32, 32)
    below = FPN(Pyramid((4, 8)), ["c2", "c3"], 6, top_block=LastLevelP6P7(5, 6, "c3"))
    assert_close(below(x)["p4"], below.top_block.p6(below.bottom_up(x)["c3"]))
    inside = FPN(Pyramid((4, 8)), ["c2", "c3"], 6, top_block=LastLevelP6P7(6, 6, "p3"))
    found = inside(x)
    assert_close(found["p4"], inside.top_block.p6(found["p3"]))
    assert_close(found["p5"], inside.top_block.p7(found["p4"].relu()))


def test_gradients_reach_every_parameter() -> None:
    fpn = FPN(Pyramid(), NAMES, 6, top_block=LastLevelP6P7(7, 6, "c5"))
    sum(value.square().sum() for value in fpn(torch.randn(1, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fpn.parameters())


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises((*REFUSED, KeyError), match="c9"):
        FPN(Pyramid(), ["c2", "c9"], 6)
    with pytest.raises(REFUSED, match="[Ss]trides"):
        FPN(Pyramid((4, 16)), ["c2", "c3"], 6)
    with pytest.raises(REFUSED):
        FPN(Pyramid(), NAMES, 6, fuse_type="max")
    with pytest.raises((*REFUSED, KeyError), match="p5"):
        FPN(Pyramid((4, 8)), ["c2", "c3"], 6, top_block=LastLevelMaxPool())(torch.randn(1, 3, 32, 32))


def small_config(name: str) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return cfg


def test_builders_take_their_settings_from_the_config() -> None:
    fpn = build_backbone(small_config("build_resnet_fpn_backbone"))
    assert list(fpn.output_shape()) == ["p3", "p4", "p5", "p6"]
    fpn = build_backbone(small_config("build_retinanet_resnet_fpn_backbone"))
    assert list(fpn.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert (fpn.top_block.p6.in_channels, fpn.top_block.p7.out_channels) == (512, 8)


def test_backbones_by_name() -> None:
    cfg = small_config("no_such_backbone")
    with pytest.raises(KeyError, match="no_such_backbone"):
        build_backbone(cfg)
    BACKBONE_REGISTRY._do_register("backbone_of_test_fpn", lambda cfg, shape: Pyramid((shape.channels,)))
    BACKBONE_REGISTRY._do_register("no_backbone_of_test_fpn", lambda cfg, shape: nn.Identity())
    cfg.MODEL.BACKBONE.NAME = "backbone_of_test_fpn"
    assert build_backbone(cfg).output_shape()["c2"].stride == 3  # channels of the default input: those of PIXEL_MEAN
    assert build_backbone(cfg, ShapeSpec(channels=8)).output_shape()["c2"].stride == 8
    cfg.MODEL.BACKBONE.NAME = "no_backbone_of_test_fpn"
    with pytest.raises(AssertionError):
        build_backbone(cfg)


def test_backbone_defaults() -> None:
    backbone = Pyramid()
    assert backbone.size_divisibility == 0
    assert backbone.padding_constraints == {}
    assert backbone.output_shape()["c3"] == ShapeSpec(channels=5, stride=8)
    with pytest.raises(TypeError, match="abstract"):
        Backbone()
