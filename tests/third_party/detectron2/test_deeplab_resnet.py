"""DeepLab's ResNet: stem, dilations, and refused settings."""

import pytest
import torch
from torch.testing import assert_close

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import ResNet, build_backbone
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.deeplab.resnet import DeepLabStem


def config(*settings: object) -> CfgNode:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    cfg.merge_from_list([f"MODEL.RESNETS.{s}" if i % 2 == 0 else s for i, s in enumerate(settings)])
    return cfg


def on_meta(cfg: CfgNode) -> ResNet:
    with torch.device("meta"):
        return build_backbone(cfg)


def test_stem_is_three_convolutions_and_a_pool() -> None:
    stem = DeepLabStem(out_channels=16, norm="FrozenBN")
    shapes = {name: tuple(p.shape) for name, p in stem.named_parameters()}
    assert shapes == {"conv1.weight": (8, 3, 3, 3), "conv2.weight": (8, 8, 3, 3), "conv3.weight": (16, 8, 3, 3)}
    assert stem.stride == 4
    x = torch.randn(1, 3, 32, 48)
    y = stem.conv3(stem.conv2(stem.conv1(x).relu()).relu()).relu()
    assert_close(stem(x), torch.nn.functional.max_pool2d(y, 3, 2, 1))
    assert stem(x).shape == (1, 16, 8, 12)


def test_stem_type() -> None:
    assert isinstance(on_meta(config("STEM_TYPE", "basic")).stem, BasicStem)
    assert isinstance(on_meta(config("STEM_TYPE", "deeplab")).stem, DeepLabStem)


@pytest.mark.parametrize(
    "res4, res5, grid, strides, dilations",
    [
        (1, 1, [1, 2, 4], [16, 32], [1, 2, 4]),  # the default grid dilates at dilation 1 too
        (1, 1, [1, 1, 1], [16, 32], [1, 1, 1]),
        (1, 2, [1, 2, 4], [16, 16], [2, 4, 8]),
        (2, 4, [1, 1, 2], [8, 8], [4, 4, 8]),
    ],
)
def test_dilation(res4: int, res5: int, grid: list[int], strides: list[int], dilations: list[int]) -> None:
    backbone = on_meta(config("RES4_DILATION", res4, "RES5_DILATION", res5, "RES5_MULTI_GRID", grid))
    assert [shape.stride for shape in backbone.output_shape().values()] == strides
    assert [block.conv2.dilation[0] for block in backbone.res5] == dilations
    assert {block.conv2.dilation[0] for block in backbone.res4} == {res4}


def test_freezing_comes_from_the_config() -> None:
    cfg = config("NORM", "BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    backbone = on_meta(cfg)
    assert not any(p.requires_grad for p in backbone.stem.parameters())
    assert all(p.requires_grad for p in backbone.res2.parameters())


@pytest.mark.parametrize(
    "settings, named",
    [
        (("DEPTH", 18), "18|DEPTH"),
        (("STEM_TYPE", "funnel"), "funnel"),
        (("RES4_DILATION", 3), "3"),
        (("RES5_DILATION", 3), "3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: tuple, named: str) -> None:
    with pytest.raises((ValueError, AssertionError, KeyError), match=named):
        on_meta(config(*settings))


def test_a_dilated_res4_needs_res5_dilated_by_four() -> None:
    with pytest.raises((ValueError, AssertionError)):
        on_meta(config("RES4_DILATION", 2, "RES5_DILATION", 1))


def test_the_grid_needs_one_factor_per_block() -> None:
    with pytest.raises((ValueError, AssertionError), match="2, 4|dilation_per_block"):
        on_meta(config("RES5_MULTI_GRID", [2, 4]))
