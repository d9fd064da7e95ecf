"""Sizes, flips and tiles."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import third_party  # noqa: F401  (makes detectron2 importable)
from segmentation.test_time_augmentation import SemanticSegmentorWithTTA, tile_starts
from tests.segmentation.tiny_models import noise_image
from tests.segmentation_recipes import segmentation_config, set_values


class Pixels(nn.Module):
    """Scores that are the pixels of the image, resized to height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        (x,) = inputs
        self.seen.append(x)
        image = x["image"].float()
        size = (x.get("height", image.shape[1]), x.get("width", image.shape[2]))
        return [{"sem_seg": nn.functional.interpolate(image[None], size, mode="bilinear")[0]}]


def augmented(model: nn.Module, **values: Any) -> SemanticSegmentorWithTTA:
    cfg = segmentation_config()
    set_values(cfg, {"TEST.AUG.MIN_SIZES": [40], "TEST.AUG.MAX_SIZE": 100, "TEST.AUG.FLIP": True} | values)
    return SemanticSegmentorWithTTA(cfg, model)


def test_flips_are_undone_and_ground_truth_stays_behind() -> None:
    model, image = Pixels(), noise_image(40, 56)
    record = {"image": image, "sem_seg": torch.zeros(40, 56), "instances": object(), "meta": {"dataset_name": "x"}}
    (found,) = augmented(model)([record])
    assert_close(found["sem_seg"], image.float(), atol=1e-3, rtol=0)
    assert len(model.seen) == 2
    assert {frozenset(x) for x in model.seen} == {frozenset({"image", "height", "width", "meta"})}


@pytest.mark.parametrize("size", [(40, 70), (30, 45), (24, 90)])
def test_tiles_cover_every_pixel(size: tuple[int, int]) -> None:
    image = noise_image(*size)
    values = {"TEST.SLIDING_WINDOW": True, "TEST.SLIDING_TILE_SIZE": 32, "TEST.SLIDING_OVERLAP": 0.5}
    values["TEST.AUG.MIN_SIZES"] = [min(size)]
    model = Pixels()
    (found,) = augmented(model, **values)([{"image": image}])
    assert_close(found["sem_seg"], image.float(), atol=1e-3, rtol=0)
    assert {tuple(x["image"].shape) for x in model.seen} == {(3, 32, 32)}


def test_tiles_end_at_the_border() -> None:
    assert tile_starts(100, 32, 0.5) == [0, 16, 32, 48, 64, 68]
    assert tile_starts(32, 32, 0.5) == tile_starts(20, 32, 0.5) == [0]
    assert tile_starts(33, 32, 2 / 3) == [0, 1]


def test_tiles_by_size() -> None:
    values = {"TEST.SLIDING_WINDOW": True, "TEST.SLIDING_TILE_SIZE": 0, "TEST.AUG.MIN_SIZES": [256]}
    values |= {"TEST.AUG.FLIP": False, "TEST.AUG.MAX_SIZE": 300}
    model = Pixels()
    augmented(model, **values)([{"image": noise_image(256, 256)}])
    assert model.seen[0]["image"].shape == (3, 224, 224)
    with pytest.raises(ValueError, match="short sides of 256, 512, 768, 896 pixels only, not 40; set it"):
        augmented(model, **values | {"TEST.AUG.MIN_SIZES": [40]})([{"image": noise_image(40, 40)}])
    with pytest.raises(ValueError, match="got batch_size 2; it augments one image at a time"):
        SemanticSegmentorWithTTA(segmentation_config(), model, batch_size=2)
