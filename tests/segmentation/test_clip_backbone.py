"""CLIP's image tower as the backbone of a segmenter."""

import pytest
import torch
from torch.testing import assert_close

import segmentation  # noqa: F401  makes a detectron2 importable
from detectron2.modeling import build_backbone
from prompt_pretrain.clip import load_clip
from prompt_pretrain.errors import InputError
from segmentation.clip_backbone import ClipPyramid
from tests.segmentation.test_api import tiny_config


@pytest.fixture(scope="module")
def backbone() -> ClipPyramid:
    torch.manual_seed(0)
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DEVICE = "build_clip_pyramid", "cpu"
    cfg.INPUT.FORMAT = "RGB"
    return build_backbone(cfg)


def test_shapes_are_as_announced(backbone: ClipPyramid) -> None:
    features = backbone(torch.randn(2, 3, 48, 64))
    assert backbone.size_divisibility == 16 and features.keys() == backbone.output_shape().keys()
    for name, spec in backbone.output_shape().items():
        assert features[name].shape == (2, spec.channels, 48 // spec.stride, 64 // spec.stride)


def test_only_the_convolutions_learn(backbone: ClipPyramid) -> None:
    backbone.train()
    names = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert names and all(name.startswith("stem.") for name in names)
    sum(feature.sum() for feature in backbone(torch.randn(1, 3, 32, 32)).values()).backward()
    assert all(parameter.grad is None for parameter in backbone.visual.parameters())


def test_tokens_are_those_of_clip_at_its_own_size(backbone: ClipPyramid) -> None:
    clip = load_clip("shapeworld-tiny")
    raw = torch.rand(1, 3, 64, 64) * 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    cfg = tiny_config()
    normalised = (raw - torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(cfg.MODEL.PIXEL_STD).view(
        3, 1, 1
    )
    with torch.no_grad():
        found = clip.model.visual.forward_intermediates((raw / 255 - mean) / std, indices=[3], intermediates_only=True)
    tokens = found["image_intermediates"][0].flatten(2)  # (1, W, 64)
    expected = torch.nn.functional.layer_norm(tokens.transpose(1, 2), tokens.shape[1:2]).transpose(1, 2)
    assert_close(backbone(normalised)["res3"].flatten(2), expected, rtol=1e-3, atol=1e-4)
    swapped = ClipPyramid(clip, cfg.MODEL.PIXEL_MEAN[::-1], cfg.MODEL.PIXEL_STD[::-1], bgr=True)
    assert swapped.bgr and swapped.scale.shape == (3, 1, 1)


def test_a_tower_without_patches_is_bad_input() -> None:
    clip = load_clip("shapeworld-tiny")
    clip.model.visual, kept = torch.nn.Identity(), clip.model.visual
    with pytest.raises(InputError, match="build_clip_pyramid needs a ViT"):
        ClipPyramid(clip, [0.0] * 3, [1.0] * 3)
    clip.model.visual = kept
