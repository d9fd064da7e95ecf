"""Swin: windows, shifts and padding against plain loops; numbers are in the golden ``detic_backbones``."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detection.backbones.swin import SIZES, build_swintransformer_backbone, swin_backbone
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from mask_former.modeling.backbone.swin import PatchMerging, SwinBlock, SwinSettings, shift_mask
from prompt_pretrain.errors import InputError
from tests.detection.released_models import released_config

TINY = SwinSettings(width=8, depths=(1, 2, 2, 1), heads=(1, 2, 2, 4), window=3, drop_path=0.2)


def attention_by_hand(block: SwinBlock, x: Tensor) -> Tensor:
    """Each position attends to those that share its window and, in a shifted block, were not brought together by it."""
    side, shift, attn = block.window, block.shift, block.attn
    _, height, width, channels = x.shape
    rows, columns = height + -height % side, width + -width % side
    padded = torch.zeros(rows, columns, channels)
    padded[:height, :width] = block.norm1(x)[0]
    q, k, v = attn.qkv(padded).view(rows, columns, 3, attn.heads, -1).permute(2, 0, 1, 3, 4)
    table = attn.relative_position_bias_table
    out = torch.zeros(rows, columns, attn.heads, channels // attn.heads)
    for i in range(rows):
        for j in range(columns):
            logits, values = [], []
            for m in range(rows):
                for n in range(columns):
                    # Windows of the shifted map, where those at the far border are cut into the parts of both sides.
                    if (m - shift) // side != (i - shift) // side or (n - shift) // side != (j - shift) // side:
                        continue
                    bias = table[(i - m + side - 1) * (2 * side - 1) + j - n + side - 1]
                    logits.append((q[i, j] * k[m, n]).sum(-1) * q.shape[-1] ** -0.5 + bias)
                    values.append(v[m, n])
            weights = torch.stack(logits).softmax(dim=0)  # (positions, heads)
            out[i, j] = (weights[..., None] * torch.stack(values)).sum(dim=0)
    return attn.proj(out.flatten(2))[None, :height, :width]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(6, 6), (5, 7), (2, 3)])
@torch.no_grad()
def test_attention_stays_inside_windows_and_regions(shift: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, heads=2, shift=shift, drop_path=0.0, settings=TINY)
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(1, *size, 8)
    x1 = x + attention_by_hand(block, x)
    expected = x1 + block.mlp(block.norm2(x1))
    assert_close(block(x, shift_mask(*size, 3, x.device)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_batch_is_its_images() -> None:
    torch.manual_seed(0)
    model = swin_backbone(TINY, (0, 1, 2, 3)).eval()
    images = torch.rand(2, 3, 45, 70)
    together = model(images)
    for i in range(2):
        for name, feature in model(images[i : i + 1]).items():
            assert_close(together[name][i : i + 1], feature, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_any_size_has_maps_of_the_stated_strides() -> None:
    model = swin_backbone(TINY, (0, 3)).eval()
    shapes = model.output_shape()
    assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == {
        "swin0": (8, 4),
        "swin3": (64, 32),
    }
    for height, width in ((1, 1), (33, 64)):
        for name, feature in model(torch.rand(1, 3, height, width)).items():
            stride = shapes[name].stride
            assert feature.shape == (1, shapes[name].channels, -(-height // stride), -(-width // stride))


def test_merging_takes_columns_last() -> None:
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    seen = merging(torch.arange(6.0).view(1, 2, 3, 1))
    assert seen.tolist() == [[[[0, 3, 1, 4], [2, 5, 0, 0]]]]


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        model = swin_backbone(TINY._replace(drop_path=0.0), (3,), use_checkpoint).train()
        assert model.train() is model
        model(torch.rand(1, 3, 32, 32))["swin3"].square().sum().backward()
        gradients.append(model.patch_embed.proj.weight.grad)
    assert_close(gradients[0], gradients[1])


def test_drop_rates_rise_over_all_blocks() -> None:
    rates = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for layer in swin_backbone(TINY, (3,)).layers
        for block in layer.blocks
    ]
    assert rates == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16, 0.2])


def test_unknown_sizes_and_stages_are_errors() -> None:
    cfg = released_config("BoxSup-C2_Lbase_CLIP_SwinB_896b32_4x")
    assert cfg.MODEL.SWIN.SIZE in SIZES
    cfg.MODEL.SWIN.SIZE = "XL"
    with pytest.raises(InputError, match=r"MODEL\.SWIN\.SIZE is 'XL'; expected one of T, S, B"):
        build_swintransformer_backbone(cfg, ShapeSpec(channels=3))
    with pytest.raises(InputError, match=r"MODEL\.SWIN\.OUT_FEATURES is \[4\]; expected some of 0 to 3"):
        swin_backbone(TINY, (4,))


def test_the_pyramid_that_is_left_out_says_so() -> None:
    cfg = released_config("BoxSup-C2_Lbase_CLIP_SwinB_896b32_4x")
    cfg.MODEL.BACKBONE.NAME = "build_swintransformer_bifpn_backbone"
    with pytest.raises(NotImplementedError, match="use build_swintransformer_fpn_backbone"):
        build_backbone(cfg)
