"""The image tower at other sizes."""

import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.errors import InputError
from segmentation.clip_vision import encode_images, resize_positions
from tests.segmentation.tiny_models import CLIP_CONFIG, EMBED_DIM, RESNET_CONFIG, tiny_clip


@pytest.mark.parametrize("config", [CLIP_CONFIG, RESNET_CONFIG], ids=["vit", "resnet"])
@torch.no_grad()
def test_the_own_size_is_that_of_open_clip(config: dict) -> None:
    clip = tiny_clip(config)
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    assert_close(encode_images(clip, images), clip.model.encode_image(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (15, 70), (33, 40)])
@torch.no_grad()
def test_other_sizes_drop_what_is_no_whole_patch(size: tuple[int, int]) -> None:
    clip = tiny_clip()
    images = torch.randn(2, 3, *size)
    whole = images[..., : size[0] // 8 * 8, : size[1] // 8 * 8]
    assert_close(encode_images(clip, images), encode_images(clip, whole))
    assert_close(encode_images(clip, images)[1:], encode_images(clip, images[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(31, 32), (63, 95), (64, 96), (65, 33), (127, 200)])
@torch.no_grad()
def test_resnets_take_every_size_whose_map_has_a_cell(size: tuple[int, int]) -> None:
    assert encode_images(tiny_clip(RESNET_CONFIG), torch.randn(1, 3, *size)).shape == (1, EMBED_DIM)


def test_positions_of_the_own_grid_stay_and_the_class_position_always() -> None:
    positions = torch.randn(1 + 16, 5)
    assert_close(resize_positions(positions, (4, 4)), positions)
    larger = resize_positions(positions, (3, 9))
    assert larger.shape == (28, 5)
    assert_close(larger[0], positions[0])


def test_errors() -> None:
    with pytest.raises(InputError, match=r"7 x 40 pixels is smaller than a patch of .*\(8 x 8\).*REGION_RESIZED True"):
        encode_images(tiny_clip(), torch.zeros(1, 3, 7, 40))
    with pytest.raises(InputError, match=r"30 x 64 pixels is smaller than a patch of .*\(32 x 32\)"):
        encode_images(tiny_clip(RESNET_CONFIG), torch.zeros(1, 3, 30, 64))
    config = CLIP_CONFIG | {
        "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    }
    clip = clip_from_config(config, clip_id="foreign")
    with pytest.raises(InputError, match=r"foreign encodes images of 32 x 32 pixels only, got \(64, 64\)"):
        encode_images(clip, torch.zeros(1, 3, 64, 64))
