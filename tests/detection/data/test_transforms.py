"""Large-scale jitter and the lists of augmentations."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

import detection  # noqa: F401  (makes detectron2 importable)
import detectron2.data.transforms as T
from centernet.config import add_centernet_config
from detection.config import add_detic_config
from detection.data.transforms import (
    EfficientDetResizeCrop,
    EfficientDetResizeCropTransform,
    build_custom_augmentation,
)
from detectron2.config import CfgNode, get_cfg
from prompt_pretrain.errors import InputError


def image(height: int, width: int, seed: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(dtype)


def settings(**values: Any) -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    add_detic_config(cfg)
    cfg.merge_from_list([part for name, value in values.items() for part in (name.replace("__", "."), value)])
    return cfg


@pytest.mark.parametrize("seed", range(20))
def test_the_result_never_exceeds_the_window_and_boxes_follow_the_pixels(seed: int) -> None:
    generator = np.random.RandomState(seed)
    height, width, size = generator.randint(20, 120, 3)
    pixels = np.zeros((height, width, 3), np.uint8)
    x0, y0 = int(width * 0.4), int(height * 0.4)
    x1, y1 = max(x0 + 4, int(width * 0.7)), max(y0 + 4, int(height * 0.7))
    pixels[y0:y1, x0:x1] = 255
    np.random.seed(seed)
    transform = EfficientDetResizeCrop(int(size), (0.5, 2.0)).get_transform(pixels)
    result = transform.apply_image(pixels)
    assert max(result.shape[:2]) <= size
    box = transform.apply_box(np.array([[x0, y0, x1, y1]], dtype=np.float64))[0]
    rows, columns = np.nonzero(result[:, :, 0] > 127)
    inside = (box[:2] > 1).all() and box[2] < result.shape[1] - 1 and box[3] < result.shape[0] - 1
    if inside and len(rows) and (box[2:] - box[:2] > 6).all():
        # Both sides have one factor, though each is cut off to whole pixels: hence more than half a pixel.
        assert_allclose([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], box, atol=2.0)


def test_unjittered_images_fit_the_square() -> None:
    transform = EfficientDetResizeCrop(40, (1, 1)).get_transform(image(50, 70))
    assert (transform.scaled_h, transform.scaled_w, transform.offset_y, transform.offset_x) == (28, 40, 0, 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 999)])
def test_tiny_and_elongated_images_keep_at_least_one_pixel(shape: tuple[int, int]) -> None:
    for seed in range(5):
        np.random.seed(seed)
        result = EfficientDetResizeCrop(64, (0.1, 2.0)).get_transform(image(*shape)).apply_image(image(*shape))
        assert min(result.shape) >= 1
        assert max(result.shape) <= 64


def test_three_numbers_are_drawn_in_any_case() -> None:
    for size in (8, 500):  # with and without something to choose from
        np.random.seed(1)
        EfficientDetResizeCrop(size, (1, 1)).get_transform(image(40, 30))
        after = np.random.rand()
        np.random.seed(1)
        np.random.rand(3)
        assert after == np.random.rand()


def test_images_of_any_type_and_view_are_resized_alike() -> None:
    transform = EfficientDetResizeCropTransform(40, 60, 3, 5, 2.0, (30, 30))
    pixels = image(20, 30)
    expected = transform.apply_image(pixels)
    assert expected.shape == (30, 30, 3)
    np.testing.assert_array_equal(transform.apply_image(pixels[:, :, ::-1]), expected[:, :, ::-1])
    np.testing.assert_array_equal(transform.apply_image(pixels[:, :, :1]), expected[:, :, :1])
    np.testing.assert_array_equal(transform.apply_image(pixels[:, :, 0]), expected[:, :, 0])
    for dtype in (np.float32, np.float64):
        floats = transform.apply_image(pixels.astype(dtype))
        assert floats.dtype == dtype
        assert_allclose(floats, expected, atol=1.5)  # enlarging: no antialiasing to differ in


def test_label_maps_keep_their_labels() -> None:
    transform = EfficientDetResizeCropTransform(33, 57, 1, 2, 2.0, (30, 30))
    labels = image(20, 30)[:, :, 0]
    for dtype in (np.uint8, np.int64):
        found = transform.apply_segmentation(labels.astype(dtype))
        assert found.dtype == dtype
        assert set(np.unique(found)) <= set(np.unique(labels))
    resized = np.asarray(Image.fromarray(labels).resize((57, 33), Image.NEAREST))[1:31, 2:32]
    np.testing.assert_array_equal(transform.apply_segmentation(labels), resized)


def test_only_coordinates_can_be_undone() -> None:
    transform = EfficientDetResizeCropTransform(40, 60, 3, 5, 2.0, (30, 30))
    boxes = np.array([[1.0, 2.0, 8.0, 9.0], [0.0, 0.0, 30.0, 20.0]])
    assert_allclose(transform.inverse_apply_box(transform.apply_box(boxes)), boxes)
    with pytest.raises(NotImplementedError, match="inverse_apply_coords"):
        transform.inverse()


@pytest.mark.parametrize(("size", "scale"), [(0, (1, 1)), (64, (0, 1)), (64, (2, 1))])
def test_impossible_arguments_are_refused(size: int, scale: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="expected a positive size and 0 < low <= high"):
        EfficientDetResizeCrop(size, scale)


def kinds(augmentations: list[T.Augmentation]) -> list[str]:
    return [type(augmentation).__name__ for augmentation in augmentations]


def test_lists_of_augmentations() -> None:
    cfg = settings(INPUT__CUSTOM_AUG="EfficientDetResizeCrop", INPUT__TRAIN_SIZE=320, INPUT__TEST_SIZE=256)
    train, test = (build_custom_augmentation(cfg, is_train) for is_train in (True, False))
    assert kinds(train) == ["EfficientDetResizeCrop", "RandomFlip"]
    assert (train[0].target_size, train[0].scale) == ((320, 320), (0.1, 2.0))
    assert kinds(test) == ["EfficientDetResizeCrop"]
    assert (test[0].target_size, test[0].scale) == ((256, 256), (1, 1))
    (own, _) = build_custom_augmentation(cfg, True, scale=(0.5, 1.5), size=64)
    assert (own.target_size, own.scale) == ((64, 64), (0.5, 1.5))

    cfg = settings(INPUT__CUSTOM_AUG="ResizeShortestEdge", INPUT__MIN_SIZE_TRAIN=(480, 800))
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    (resize, _) = build_custom_augmentation(cfg, True)
    assert (tuple(resize.short_edge_length), resize.max_size) == ((480, 800), 1333)
    (resize, _) = build_custom_augmentation(cfg, True, min_size=(240, 400), max_size=667)
    assert (tuple(resize.short_edge_length), resize.max_size) == ((240, 400), 667)
    assert kinds(build_custom_augmentation(cfg, False)) == ["ResizeShortestEdge"]


def test_an_empty_name_is_detectron2s_own_list_and_flips_can_be_switched_off() -> None:
    assert kinds(build_custom_augmentation(settings(), True)) == ["ResizeShortestEdge", "RandomFlip"]
    for name in ("", "ResizeShortestEdge", "EfficientDetResizeCrop", "DETR"):
        cfg = settings(INPUT__CUSTOM_AUG=name, INPUT__RANDOM_FLIP="none")
        assert "RandomFlip" not in kinds(build_custom_augmentation(cfg, True))


def test_detr_crops_every_other_image() -> None:
    cfg = settings(INPUT__CUSTOM_AUG="DETR", INPUT__MIN_SIZE_TRAIN=(64,), INPUT__MAX_SIZE_TRAIN=200)
    assert kinds(build_custom_augmentation(cfg, True)) == ["RandomFlip", "ResizeShortestEdge"]
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute_range", [384, 600]
    augmentations = build_custom_augmentation(cfg, True)
    assert kinds(augmentations) == ["RandomFlip", "RandomApply", "ResizeShortestEdge"]
    cropped = 0
    for seed in range(40):
        np.random.seed(seed)
        result, transforms = T.apply_augmentations(augmentations, image(60, 90))
        assert min(result.shape[:2]) <= 64
        cropped += any(type(transform).__name__ == "CropTransform" for transform in transforms.transforms)
    assert 10 <= cropped <= 30


def test_an_unknown_name_is_refused() -> None:
    cfg = settings()
    cfg.INPUT.CUSTOM_AUG = "Mosaic"
    with pytest.raises(InputError, match="INPUT.CUSTOM_AUG is 'Mosaic', expected one of '', 'ResizeShortestEdge'"):
        build_custom_augmentation(cfg, True)
