"""timm's networks: levels, freezing, weights to fetch, errors; numbers are in the golden ``detic_backbones``."""

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from detection.backbones import timm_backbone
from detection.backbones.timm_backbone import TimmBackbone, build_p35_timm_fpn_backbone, build_timm_backbone
from detectron2.layers import ShapeSpec
from prompt_pretrain.errors import InputError
from tests.detection.released_models import released_config

RGB = ShapeSpec(channels=3)


@pytest.mark.parametrize(
    ("name", "levels", "strides"),
    [
        ("resnet18", (1, 3, 5), [2, 8, 32]),
        ("regnetx_002", (2, 3), [4, 8]),
        ("efficientnet_lite0", (3, 4, 5), [8, 16, 32]),
        ("convnext_atto", (1, 4), [4, 32]),
    ],
)
def test_levels_have_the_channels_and_strides_they_say(name: str, levels: tuple[int, ...], strides: list[int]) -> None:
    backbone = TimmBackbone(base_name=name, out_levels=levels, norm="FrozenBN").eval()
    shapes = backbone.output_shape()
    assert list(shapes) == [f"layer{level}" for level in levels]
    assert [shape.stride for shape in shapes.values()] == strides and backbone.size_divisibility == 32
    with torch.no_grad():
        for key, feature in backbone(torch.rand(1, 3, 64, 96)).items():
            shape = shapes[key]
            assert feature.shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002"])
def test_frozen_norms_keep_statistics_and_activations(name: str) -> None:
    torch.manual_seed(0)
    plain = TimmBackbone(base_name=name, out_levels=(2,), norm="BN").eval()
    frozen = TimmBackbone(base_name=name, out_levels=(2,), norm="FrozenBN").train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    frozen.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(2, 3, 32, 32)
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    assert_close(frozen(x)["layer2"], plain(x)["layer2"], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


def test_the_whole_resnet_gives_what_timm_s_features_give() -> None:
    torch.manual_seed(0)
    whole = TimmBackbone(base_name="resnet50_in21k", out_levels=(1, 2), norm="FrozenBN").eval()
    features = timm.create_model("resnet50", features_only=True, out_indices=(0, 1), pretrained=False).eval()
    features.load_state_dict({key: whole.base.state_dict()[key] for key in features.state_dict()})
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(whole(x).values(), features(x), strict=True):
            assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert whole.state_dict()["base.fc.weight"].shape == (11221, 2048)


@pytest.mark.parametrize(("freeze_at", "parts"), [(0, set()), (1, {"conv1"}), (2, {"conv1", "layer1"})])
def test_freezing_stops_at_the_first_stage(freeze_at: int, parts: set[str]) -> None:
    backbone = TimmBackbone(base_name="resnet18", out_levels=(5,), norm="FrozenBN", freeze_at=freeze_at)
    frozen = {name.split(".")[0] for name, each in backbone.base.named_parameters() if not each.requires_grad}
    assert frozen == parts


def fpn_config(**timm_settings: Any):
    cfg = released_config("BoxSup-C2_LCOCO_CLIP_R18_640b32_4x")
    for key, value in timm_settings.items():
        setattr(cfg.MODEL.TIMM, key, value)
    return cfg


def test_a_pyramid_without_top_block_ends_at_p5() -> None:
    fpn = build_p35_timm_fpn_backbone(fpn_config(PRETRAINED=False), RGB)
    assert list(fpn.output_shape()) == ["p3", "p4", "p5"] and fpn.top_block is None


def test_weights_are_fetched_only_where_no_checkpoint_replaces_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def spy(*args, pretrained, **kwargs):
        asked.append((args[0], pretrained))
        return create(*args, pretrained=False, **kwargs)

    monkeypatch.setattr(timm_backbone.timm, "create_model", spy)
    cfg = fpn_config(PRETRAINED=True)
    assert cfg.MODEL.WEIGHTS == ""
    build_timm_backbone(cfg, RGB)
    cfg.MODEL.WEIGHTS = "some.pth"
    build_timm_backbone(cfg, RGB)
    build_timm_backbone(fpn_config(BASE_NAME="convnext_tiny_21k", OUT_LEVELS=(2, 3, 4), PRETRAINED=True), RGB)
    assert asked == [("resnet18", True), ("resnet18", False), ("convnext_tiny.fb_in22k", True)]


def test_weights_that_cannot_be_fetched_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm_backbone.timm, "create_model", offline)
    with pytest.raises(InputError, match=r"resnet18 could not be fetched \(no route to host\); give MODEL\.WEIGHTS"):
        build_timm_backbone(fpn_config(PRETRAINED=True), RGB)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_name": "vit_small", "out_levels": (3,)}, "BASE_NAME is 'vit_small'; expected resnet50_in21k"),
        ({"base_name": "resnet51", "out_levels": (3,)}, "'resnet51' is no model of timm"),
        ({"base_name": "resnet18", "out_levels": (5, 6)}, r"OUT_LEVELS is \[5, 6\]; resnet18 has levels 1 to 5"),
        ({"base_name": "convnext_atto", "out_levels": (5,)}, "convnext_atto has levels 1 to 4"),
        ({"base_name": "resnet50_in21k", "out_levels": (4, 3)}, "in rising order"),
        ({"base_name": "resnet50_in21k", "out_levels": (3,), "pretrained": True}, "resnet50_miil_21k.pkl"),
    ],
)
def test_settings_that_cannot_be_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TimmBackbone(**settings)
