"""ResNet: numbers against torchvision, what is built, frozen, dilated and refused."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models.resnet import BasicBlock as TorchvisionBasicBlock
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import ResNet, ResNetBlockBase, build_backbone, make_stage
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    build_resnet_backbone,
)

REFUSED = (ValueError, AssertionError)


def config(*settings: object) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list([f"MODEL.RESNETS.{s}" if i % 2 == 0 else s for i, s in enumerate(settings)])
    return cfg


def on_meta(cfg: CfgNode) -> ResNet:
    """The backbone's structure, without memory or time for weights."""
    with torch.device("meta"):
        return build_backbone(cfg)


def small_resnet(block: type = BottleneckBlock, norm: str = "BN") -> ResNet:
    stages, channels = [], 64
    for i in range(2):
        out = (64 if block is BasicBlock else 256) * 2**i
        options = {"norm": norm} if block is BasicBlock else {"norm": norm, "bottleneck_channels": out // 4}
        stages.append(
            make_stage(block, 2, in_channels=channels, out_channels=out, stride_per_block=[1 + i, 1], **options)
        )
        channels = out
    return ResNet(BasicStem(norm=norm), stages, out_features=["stem", "res2", "res3"])


def randomise(model: nn.Module) -> None:
    torch.manual_seed(1)
    for name, entry in model.state_dict().items():
        if "running_var" in name:
            entry.uniform_(0.5, 1.5)
        elif "norm" in name and entry.is_floating_point():
            entry.normal_()


def torchvision_name(name: str) -> str:
    """Ours (``res3.0.conv2.norm.bias``) in torchvision's words (``layer2.0.bn2.bias``)."""
    name = name.removeprefix("stem.").replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    for i in range(1, 4):
        name = name.replace(f"conv{i}.norm", f"bn{i}")
    for i in range(2, 6):
        name = name.replace(f"res{i}.", f"layer{i - 1}.")
    return name.replace("linear", "fc")


@pytest.mark.parametrize("depth", [18, 50])
def test_agrees_with_torchvision(depth: int) -> None:
    blocks = [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]
    reference = TorchvisionResNet(TorchvisionBasicBlock if depth == 18 else TorchvisionBottleneck, blocks, 7).eval()
    torch.manual_seed(0)
    ours = ResNet(BasicStem(), ResNet.make_default_stages(depth), num_classes=7).eval()
    randomise(ours)
    reference.load_state_dict({torchvision_name(name): value for name, value in ours.state_dict().items()})
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert_close(ours(x)["linear"], reference(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth, blocks", [(34, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3])])
def test_depth_sets_the_number_of_blocks(depth: int, blocks: list[int]) -> None:
    with torch.device("meta"):
        stages = ResNet.make_default_stages(depth)
    assert [len(stage) for stage in stages] == blocks
    assert [[block.stride for block in stage][:2] for stage in stages] == [[1, 1], [2, 1], [2, 1], [2, 1]]
    widest = 512 if depth == 34 else 2048
    assert [stage[0].out_channels for stage in stages] == [widest // 8, widest // 4, widest // 2, widest]


def test_unknown_depth_is_refused() -> None:
    with pytest.raises((ValueError, KeyError), match="77"):
        ResNet.make_default_stages(77)


def test_stages_below_the_deepest_output_are_not_built() -> None:
    backbone = on_meta(config("OUT_FEATURES", ["res2", "res3"]))
    assert [name for name, _ in backbone.named_children()] == ["stem", "res2", "res3"]
    assert list(backbone.output_shape()) == ["res2", "res3"]
    with torch.device("meta"):
        alone = ResNet(BasicStem(), ResNet.make_default_stages(50), out_features=["stem"])
    assert [name for name, _ in alone.named_children()] == ["stem"]


def test_the_default_output_is_the_last_one() -> None:
    with torch.device("meta"):
        x, stages = torch.empty(1, 3, 64, 64), ResNet.make_default_stages(18)
        assert {name: y.shape for name, y in ResNet(BasicStem(), stages)(x).items()} == {"res5": (1, 512, 2, 2)}
        classifier = ResNet(BasicStem(), stages, num_classes=3)
        assert {name: y.shape for name, y in classifier(x).items()} == {"linear": (1, 3)}


@pytest.mark.parametrize("in_1x1", [True, False])
def test_stride_is_in_the_1x1_or_the_3x3_convolution(in_1x1: bool) -> None:
    block = on_meta(config("STRIDE_IN_1X1", in_1x1)).res3[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == ((2, 1) if in_1x1 else (1, 2))
    assert block.shortcut.stride[0] == 2


def test_only_a_change_of_channels_brings_a_shortcut_convolution() -> None:
    assert BasicBlock(8, 16).shortcut is not None
    assert BasicBlock(8, 8).shortcut is None
    assert BottleneckBlock(8, 8, bottleneck_channels=4, stride=1).shortcut is None


def test_a_block_without_norm_has_none_and_no_bias() -> None:
    block = BottleneckBlock(8, 16, bottleneck_channels=4, norm="")
    assert [name for name, _ in block.named_parameters()] == [
        f"{conv}.weight" for conv in ("shortcut", "conv1", "conv2", "conv3")
    ]
    x = torch.randn(1, 8, 5, 5)
    expected = block.conv3(block.conv2(block.conv1(x).relu()).relu()) + block.shortcut(x)
    assert_close(block(x), expected.relu())


def test_groups_and_width_make_a_resnext() -> None:
    backbone = on_meta(config("DEPTH", 101, "NUM_GROUPS", 32, "WIDTH_PER_GROUP", 8))
    assert (backbone.res2[0].conv2.groups, backbone.res2[0].conv2.in_channels) == (32, 256)
    assert (backbone.res4[5].conv2.groups, backbone.res4[5].conv2.in_channels) == (32, 1024)


def test_dilated_res5_keeps_the_stride_of_res4() -> None:
    backbone = on_meta(config("RES5_DILATION", 2, "OUT_FEATURES", ["res4", "res5"]))
    assert [shape.stride for shape in backbone.output_shape().values()] == [16, 16]
    assert [block.conv2.dilation for block in backbone.res5] == [(2, 2)] * 3
    assert [block.conv2.padding for block in backbone.res5] == [(2, 2)] * 3


def test_freezing_stops_gradients_and_batch_statistics() -> None:
    model = small_resnet()
    assert model.freeze(2) is model
    assert not any(p.requires_grad for part in (model.stem, model.res2) for p in part.parameters())
    assert all(p.requires_grad for p in model.res3.parameters())
    assert isinstance(model.res2[1].conv3.norm, FrozenBatchNorm2d)
    assert isinstance(model.res3[0].conv1.norm, nn.BatchNorm2d)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sum(output.sum() for output in model.train()(torch.randn(2, 3, 32, 32)).values()).backward()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("res3") for name in changed)


@pytest.mark.parametrize("freeze_at, trainable", [(0, {"stem", "res2", "res3"}), (1, {"res2", "res3"}), (9, set())])
def test_freeze_at_counts_parts_from_the_stem(freeze_at: int, trainable: set[str]) -> None:
    model = small_resnet().freeze(freeze_at)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == trainable


def test_a_batch_is_the_same_as_its_images_one_by_one() -> None:
    model = small_resnet(BasicBlock, "FrozenBN")
    x = torch.randn(3, 3, 32, 48)
    together, alone = model(x), [model(image[None]) for image in x]
    for name in ("stem", "res2", "res3"):
        assert_close(together[name], torch.cat([one[name] for one in alone]), rtol=1e-4, atol=1e-5)


def test_inference_leaves_its_input_alone() -> None:
    model, x = small_resnet(BasicBlock, "FrozenBN").eval(), torch.randn(1, 3, 32, 32)
    copy = x.clone()
    with torch.no_grad():
        first, second = model(x)["res3"], model(x)["res3"]
    assert torch.equal(x, copy)
    assert torch.equal(first, second)


def test_make_stage_takes_arguments_per_block() -> None:
    blocks = make_stage(
        BottleneckBlock, 2, in_channels=8, out_channels=16, bottleneck_channels=4, dilation_per_block=[1, 3]
    )
    assert all(isinstance(block, ResNetBlockBase) for block in blocks)
    assert [(block.in_channels, block.out_channels) for block in blocks] == [(8, 16), (16, 16)]
    assert [block.conv2.dilation[0] for block in blocks] == [1, 3]
    with pytest.raises(REFUSED, match="stride_per_block"):
        make_stage(BasicBlock, 3, in_channels=8, out_channels=8, stride_per_block=[1, 1])
    with pytest.raises(REFUSED, match="stride_per_block"):
        make_stage(BasicBlock, 2, in_channels=8, out_channels=8, stride_per_block=[1, 1], stride=1)


def test_deformable_block_starts_as_a_plain_one() -> None:
    torch.manual_seed(0)
    plain = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, norm="FrozenBN")
    deformable = DeformBottleneckBlock(8, 16, bottleneck_channels=4, stride=2, norm="FrozenBN")
    left = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert set(left.missing_keys) == {"conv2_offset.weight", "conv2_offset.bias"}
    x = torch.randn(2, 8, 9, 12)
    assert_close(deformable(x), plain(x), rtol=1e-4, atol=1e-5)


def test_deformable_stages_come_from_the_config() -> None:
    cfg = config("DEFORM_ON_PER_STAGE", [False, False, True, False], "DEFORM_MODULATED", True, "DEFORM_NUM_GROUPS", 2)
    backbone = on_meta(cfg)
    assert isinstance(backbone.res4[0], DeformBottleneckBlock)
    assert isinstance(backbone.res3[0], BottleneckBlock)
    assert backbone.res4[0].conv2_offset.out_channels == 54
    assert backbone.res4[0].conv2_offset.bias is not None


def test_images_of_other_channel_counts() -> None:
    cfg = config("OUT_FEATURES", ["stem"], "DEPTH", 18, "RES2_OUT_CHANNELS", 64)
    cfg.MODEL.PIXEL_MEAN = [0.0, 0.0]
    assert on_meta(cfg).stem.conv1.in_channels == 2


@pytest.mark.parametrize(
    "settings, named",
    [
        (("RES5_DILATION", 3), "3"),
        (("DEPTH", 18), "RES2_OUT_CHANNELS"),
        (("DEPTH", 34, "RES2_OUT_CHANNELS", 64, "NUM_GROUPS", 2), "NUM_GROUPS"),
        (("DEPTH", 34, "RES2_OUT_CHANNELS", 64, "RES5_DILATION", 2), "RES5_DILATION"),
        (("DEPTH", 18, "RES2_OUT_CHANNELS", 64, "DEFORM_ON_PER_STAGE", [True] * 4), "DEFORM_ON_PER_STAGE"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: tuple, named: str) -> None:
    with pytest.raises(REFUSED, match=named):
        on_meta(config(*settings, "OUT_FEATURES", ["res5"]))


def test_unknown_outputs_are_refused() -> None:
    with pytest.raises(REFUSED, match="stem, res2"):
        ResNet(BasicStem(), [[BasicBlock(64, 64)]], out_features=["res2", "res7"])


def test_inputs_without_a_batch_are_refused() -> None:
    with pytest.raises(AssertionError, match="shape"):
        small_resnet(BasicBlock)(torch.randn(3, 32, 32))


def test_builder_returns_a_resnet_with_the_stem_of_the_config() -> None:
    with torch.device("meta"):
        backbone = build_resnet_backbone(config("STEM_OUT_CHANNELS", 32), ShapeSpec(channels=4))
    assert isinstance(backbone, ResNet)
    assert tuple(backbone.stem.conv1.weight.shape) == (32, 4, 7, 7)
    assert backbone.res2[0].shortcut.in_channels == 32
