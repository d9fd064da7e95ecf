"""Augmentations of mask classification."""

import numpy as np
import pytest

import segmentation  # noqa: F401
from detectron2.data import transforms as T
from segmentation.data.transforms import CenterCrop, CropImageWithMask, RandomResizedCrop, box_of_class, expand_box


def labelled(height, width, box, label=3):
    x, y, box_width, box_height = box
    labels = np.full((height, width), 255.0)
    labels[y : y + box_height, x : x + box_width] = label
    return labels


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (2, 3, 4, 1), (0, 0, 9, 7)])
def test_box_of_class_is_tight(box):
    assert box_of_class(labelled(7, 9, box), 3) == box
    with pytest.raises(AssertionError, match="no pixel has the label 4"):
        box_of_class(labelled(7, 9, box), 4)


def test_expanded_box_stays_inside_and_has_pixels():
    assert expand_box((8, 6, 1, 1), 1.0, 7, 9) == (8, 6, 1, 1)
    assert expand_box((4, 3, 2, 2), 2.0, 20, 20) == (3, 2, 4, 4)
    assert expand_box((4, 3, 2, 2), 100.0, 20, 30) == (0, 0, 29, 19)


def crop(augmentation, image, labels=None, **fields):
    inputs = T.AugInput(image, sem_seg=labels)
    for name, value in fields.items():
        setattr(inputs, name, value)
    augmentation(inputs)
    return inputs


def test_crop_shows_the_class():
    image = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    found = crop(CropImageWithMask(), image, labelled(7, 9, (2, 1, 4, 3)), category_id=3)
    np.testing.assert_array_equal(found.image, image[1:4, 2:6])
    assert (found.sem_seg == 3).all()


def test_one_of_several_ratios_is_drawn():
    np.random.seed(0)
    image, labels = np.zeros((40, 40, 3), np.uint8), labelled(40, 40, (15, 15, 10, 10))
    augmentation = CropImageWithMask([1.0, 2.0])
    sizes = {crop(augmentation, image, labels, category_id=3).image.shape[:2] for _ in range(20)}
    assert sizes == {(10, 10), (20, 20)}


@pytest.mark.parametrize("shape", [(30, 40), (1, 1), (2, 200), (200, 3)])
def test_random_resized_crop_has_the_size_asked_for(shape):
    np.random.seed(1)
    for _ in range(10):
        found = crop(RandomResizedCrop((8, 12)), np.zeros((*shape, 3), np.uint8), np.zeros(shape))
        assert found.image.shape == (12, 8, 3)
        assert found.sem_seg.shape == (12, 8)


def test_random_rectangles_are_inside_and_keep_to_area_and_ratio():
    np.random.seed(2)
    for _ in range(200):
        x, y, width, height = RandomResizedCrop((8, 8), scale=(0.25, 0.5))._rectangle(100, 120)
        assert 0 <= x <= 120 - width and 0 <= y <= 100 - height
        assert 0.24 < width * height / 12000 < 0.51
        assert 0.73 < width / height < 1.37


@pytest.mark.parametrize(("shape", "expected"), [((3, 90), (43, 0, 4, 3)), ((90, 3), (0, 43, 3, 4))])
def test_middle_of_very_long_images(shape, expected):
    assert RandomResizedCrop((8, 8), scale=(0.9, 1.0))._rectangle(*shape) == expected


def test_center_crop_cuts_the_middle():
    image = np.arange(5 * 8, dtype=np.uint8).reshape(5, 8)
    np.testing.assert_array_equal(crop(CenterCrop((3, 4)), image).image, image[1:4, 2:6])


def test_center_crop_pads_small_images():
    image, labels = np.full((2, 9), 7, np.uint8), np.full((2, 9), 4.0)
    found = crop(CenterCrop((5, 5), seg_ignore_label=99), image, labels)
    expected = np.zeros((5, 5))
    expected[1:3] = 1
    np.testing.assert_array_equal(found.image, 7 * expected)
    np.testing.assert_array_equal(found.sem_seg, np.where(expected, 4, 99))
