"""Features of masks from one pass over the image."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import third_party  # noqa: F401  (makes detectron2 importable)
from detectron2.modeling import build_model
from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.errors import InputError
from segmentation.clip_adapter import MaskFormerClipAdapter
from segmentation.clip_vision import encode_images
from segmentation.mask_pooling import MaskPoolingClipAdapter, pool_features
from segmentation.prompt_learners import PredefinedPrompts
from tests.segmentation.tiny_models import CLIP_CONFIG, RESNET_CONFIG, blob_masks, noise_image, tiny_clip, tiny_config

NAMES = ["sand", "red star", "blue disc"]
CONFIGS = {"vit": CLIP_CONFIG, "resnet": RESNET_CONFIG}


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_a_mask_of_everything_has_the_features_of_the_image(kind: str) -> None:
    clip = tiny_clip(CONFIGS[kind])
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(3, 64, 96)
    masks[0], masks[1, :32, :32], masks[2, 40:, 50:] = 1, 1, 1
    found = pool_features(clip, image, masks)
    assert_close(found[0], encode_images(clip, image)[0], rtol=1e-4, atol=1e-5)
    order = [2, 0, 1]
    assert_close(pool_features(clip, image, masks[order]), found[order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1], found[2], atol=1e-3)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_only_weights_count(kind: str) -> None:
    clip = tiny_clip(CONFIGS[kind])
    image = torch.randn(1, 3, 64, 64)
    masks = torch.zeros(2, 64, 64)
    masks[:, :32] = 1
    masks[1, 40, 40] = 1e-20
    first, second = pool_features(clip, image, masks)
    assert_close(first, second, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(first, pool_features(clip, image, masks.flip(1))[0], atol=1e-3)


@torch.no_grad()
def test_the_adapter_classifies_valid_masks_of_each_image() -> None:
    adapter = MaskPoolingClipAdapter(tiny_clip(), PredefinedPrompts(["a {}."]), region_size=0)
    images = [noise_image(40, 60).float(), noise_image(33, 20, seed=1).float(), noise_image(30, 30).float()]
    masks = [blob_masks(40, 60), blob_masks(33, 20, seed=1), torch.zeros(2, 30, 30)]
    masks[0][1] = 0
    logits, valid = adapter.classify(images, NAMES, masks)
    assert [which.tolist() for which in valid] == [[True, False, True], [True] * 3, [False, False]]
    assert logits[2] is None and logits[0].shape == (2, 4)
    alone, _ = adapter(images[1], NAMES, masks[1])
    assert_close(alone, logits[1])
    assert float(logits[0].abs().max()) <= 100.001
    # A whole image is classified as by CLIP itself.
    whole, _ = adapter(images[2], NAMES, torch.ones(1, 30, 30))
    resized = F.interpolate(images[2][None], (64, 64), mode="bicubic", antialias=True)
    resized = (resized - adapter.pixel_mean) / adapter.pixel_std
    assert_close(whole, _scores(adapter, resized), rtol=1e-3, atol=1e-2)


def _scores(adapter: MaskPoolingClipAdapter, image: torch.Tensor) -> torch.Tensor:
    features = F.normalize(adapter.encode_image(image), dim=1)
    return 100 * features @ adapter.class_features(NAMES).T


@torch.no_grad()
def test_matting_weighs_by_probability() -> None:
    clip = tiny_clip()
    plain, matting = (
        MaskPoolingClipAdapter(clip, PredefinedPrompts(["{}"]), region_size=0, mask_matting=on) for on in (False, True)
    )
    matting.non_object_embedding.copy_(plain.non_object_embedding)
    image, mask = noise_image(32, 32).float(), torch.zeros(1, 32, 32)
    mask[0, :16] = 1
    assert_close(plain(image, NAMES, mask)[0], matting(image, NAMES, mask)[0])
    mask[0, 16:] = 0.3
    assert not torch.allclose(plain(image, NAMES, mask)[0], matting(image, NAMES, mask)[0], atol=1e-2)


def test_panoramas_and_tiny_images_have_a_bounded_size() -> None:
    adapter = MaskPoolingClipAdapter(tiny_clip(), PredefinedPrompts(["{}"]), region_size=0)
    assert adapter._resized(torch.zeros(3, 10, 400)).shape == (1, 3, 64, 256)
    assert adapter._resized(torch.zeros(3, 1, 1)).shape == (1, 3, 64, 64)


def test_the_config_chooses_the_classifier(tmp_path: Path) -> None:
    key = "MODEL.CLIP_ADAPTER.REGION_CLASSIFIER"
    models = {kind: build_model(tiny_config(tmp_path, key, kind)).eval() for kind in ("crops", "pooling")}
    assert type(models["crops"].clip_adapter) is MaskFormerClipAdapter
    pooling = models["pooling"]
    assert type(pooling.clip_adapter) is MaskPoolingClipAdapter
    pooling.load_state_dict(models["crops"].state_dict())  # of the same names
    pooling.set_classes(NAMES)
    with torch.no_grad():
        (found,) = pooling([{"image": noise_image(64, 50)}])
    assert found["sem_seg"].shape == (3, 64, 50) and found["sem_seg"].isfinite().all()
    with pytest.raises(InputError, match=f"{key} is 'magic'; expected one of crops, pooling"):
        build_model(tiny_config(tmp_path, key, "magic"))


def test_towers_without_a_class_token_are_refused() -> None:
    config = CLIP_CONFIG | {"vision_cfg": CLIP_CONFIG["vision_cfg"] | {"pool_type": "avg"}}
    clip = clip_from_config(config, clip_id="averaging")
    with pytest.raises(InputError, match="averaging has no class token.*REGION_CLASSIFIER 'crops'"):
        pool_features(clip, torch.zeros(1, 3, 32, 32), torch.ones(1, 4, 4))
