"""The image tower's fast path against the tower itself."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from prompt_pretrain.clip import Clip, clip_from_config
from segmentation import packed_vit as module
from segmentation.clip_vision import encode_images
from segmentation.packed_vit import packed_vit

TEXT = {"context_length": 77, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}


def make_clip(*, quick_gelu: bool = True, layers: int = 3, **vision: object) -> Clip:
    tower = {"image_size": 32, "layers": layers, "width": 128, "patch_size": 8, "head_width": 32} | vision
    return clip_from_config({"embed_dim": 16, "vision_cfg": tower, "text_cfg": TEXT, "quick_gelu": quick_gelu})


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("packed_products", [True, False])
@torch.no_grad()
def test_features_are_those_of_the_tower(
    quick_gelu: bool, packed_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed_products:
        monkeypatch.setattr(module, "_has_packed_products", lambda weight: False)
    clip = make_clip(quick_gelu=quick_gelu)
    images = torch.randn(5, 3, 32, 32)
    expected = clip.model.visual(images)
    assert_close(encode_images(clip, images), expected, rtol=1e-4, atol=1e-5)
    cosine = torch.cosine_similarity(encode_images(clip, images, precision="bf16"), expected)
    assert cosine.min() > 0.9995


@torch.no_grad()
def test_chunks_do_not_change_features(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip()
    images = torch.randn(5, 3, 40, 24)  # not the tower's own size
    whole = encode_images(clip, images)
    monkeypatch.setitem(module._CHUNK_BYTES, "cpu", 1)
    assert_close(encode_images(clip, images), whole, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_changed_weights_are_packed_again() -> None:
    clip = make_clip(layers=1)
    images = torch.randn(2, 3, 32, 32)
    before = encode_images(clip, images)
    assert packed_vit(clip.model.visual) is packed_vit(clip.model.visual)
    clip.model.load_state_dict({name: 1.5 * value for name, value in clip.model.state_dict().items()})
    after = encode_images(clip, images)
    assert not torch.allclose(before, after)
    assert_close(after, clip.model.visual(images), rtol=1e-4, atol=1e-5)


def test_packed_weights_go_with_their_tower() -> None:
    clip = make_clip(layers=1)
    packed_vit(clip.model.visual)
    watch = weakref.ref(clip.model.visual)
    del clip
    gc.collect()
    assert watch() is None


def test_gradients_to_the_image_take_the_plain_path() -> None:
    clip = make_clip(layers=1)
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    encode_images(clip, images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize("option", [{"ls_init_value": 0.1}, {"pool_type": "avg"}, {"attentional_pool": True}])
@torch.no_grad()
def test_unusual_towers_take_the_plain_path(option: dict[str, object]) -> None:
    clip = make_clip(layers=1, **option)
    images = torch.randn(2, 3, 32, 32)
    assert packed_vit(clip.model.visual) is None
    assert torch.equal(encode_images(clip, images), clip.model.visual(images))
    assert encode_images(clip, images, precision="bf16").isfinite().all()


def test_other_activations_are_unusual() -> None:
    clip = make_clip(layers=1)
    clip.model.visual.transformer.resblocks[0].mlp.gelu = nn.ReLU()
    assert packed_vit(clip.model.visual) is None
