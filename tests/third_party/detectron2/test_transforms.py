"""Properties of transforms and augmentations."""

import random

import numpy as np
import pytest
from PIL import Image

from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform


@pytest.fixture
def image() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (24, 36, 3), dtype=np.uint8)


def test_resize_scales_boxes_as_the_image(image):
    transform = T.ResizeTransform(24, 36, 48, 18, Image.BILINEAR)
    assert transform.apply_image(image).shape == (48, 18, 3)
    np.testing.assert_allclose(transform.apply_box(np.array([[4.0, 6.0, 20.0, 12.0]])), [[2.0, 12.0, 10.0, 24.0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_keeps_type_and_number_of_axes(image, dtype):
    transform = T.ResizeTransform(24, 36, 12, 20, Image.BILINEAR)
    for source in (image, image[:, :, 0], image[:, :, :1]):
        resized = transform.apply_image(source.astype(dtype))
        assert resized.dtype == dtype
        assert resized.shape == (12, 20, *source.shape[2:])


def test_resize_takes_label_values_as_they_are():
    labels = np.random.RandomState(1).choice([0, 7, 255], (10, 14)).astype(np.uint8)
    resized = T.ResizeTransform(10, 14, 23, 9, Image.BILINEAR).apply_segmentation(labels)
    assert set(np.unique(resized)) <= {0, 7, 255}


def test_resize_of_another_size_is_refused(image):
    with pytest.raises(AssertionError):
        T.ResizeTransform(20, 36, 10, 18, Image.BILINEAR).apply_image(image)


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation_by_right_angles_is_exact(image, angle):
    transform = T.RotationTransform(24, 36, angle)
    np.testing.assert_array_equal(transform.apply_image(image), np.rot90(image, angle // 90))


def test_rotation_moves_coordinates_with_the_pixels():
    marked = np.zeros((21, 31), dtype=np.uint8)
    marked[5, 20] = 255
    transform = T.RotationTransform(21, 31, 37)
    x, y = transform.apply_coords(np.array([[20.5, 5.5]]))[0]
    row, column = np.unravel_index(transform.apply_image(marked).argmax(), (transform.bound_h, transform.bound_w))
    assert abs(row + 0.5 - y) <= 1
    assert abs(column + 0.5 - x) <= 1


def test_rotation_keeps_its_centre_without_expansion(image):
    transform = T.RotationTransform(24, 36, 33, expand=False, center=(10, 7))
    assert transform.apply_image(image).shape == image.shape
    np.testing.assert_allclose(transform.apply_coords(np.array([[10.0, 7.0]])), [[10.0, 7.0]])
    with pytest.raises(NotImplementedError):
        transform.inverse()


def test_inverse_rotation_returns_coordinates():
    transform = T.RotationTransform(24, 36, 30)
    points = np.array([[3.0, 4.0], [30.0, 20.0]])
    back = transform.inverse().apply_coords(transform.apply_coords(points.copy()))
    np.testing.assert_allclose(back, points, atol=1.0)  # canvases are whole pixels


def test_color_transforms_leave_geometry_alone(image):
    for transform in (
        T.ColorTransform(lambda pixels: 255 - pixels),
        T.PILColorTransform(lambda picture: picture.point(lambda value: 255 - value)),
    ):
        np.testing.assert_array_equal(transform.apply_image(image), 255 - image)
        np.testing.assert_array_equal(transform.apply_coords(np.array([[1.0, 2.0]])), [[1.0, 2.0]])
        assert transform.apply_segmentation(image[:, :, 0]) is not None
    with pytest.raises(ValueError):
        T.ColorTransform("grey")


def test_extent_beyond_the_image_is_black(image):
    transform = T.ExtentTransform((-36, 0, 72, 24), (24, 108))
    shown = transform.apply_image(image)
    assert (shown[:, :36] == 0).all()
    np.testing.assert_array_equal(shown[:, 36:72], image)


def test_list_flattens_and_inverts(image):
    transforms = T.TransformList([T.TransformList([T.HFlipTransform(36)]), T.CropTransform(3, 4, 20, 10, 36, 24)])
    assert len(transforms.transforms) == 2
    boxes = np.array([[5.0, 6.0, 15.0, 12.0]])
    np.testing.assert_allclose(transforms.inverse().apply_box(transforms.apply_box(boxes.copy())), boxes)


def test_inputs_are_found_by_name(image):
    class Dimmed(T.Augmentation):
        def get_transform(self, image, sem_seg):
            assert sem_seg.shape == image.shape[:2]
            return T.NoOpTransform()

    class AnyName(T.Augmentation):
        def get_transform(self, picture):
            return T.HFlipTransform(picture.shape[1])

    inputs = T.AugInput(image, sem_seg=np.zeros((24, 36), dtype=np.uint8))
    T.AugmentationList([Dimmed(), AnyName()])(inputs)
    np.testing.assert_array_equal(inputs.image, image[:, ::-1])


def test_inputs_that_do_not_exist_are_named(image):
    class Wishful(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    class Greedy(T.Augmentation):
        def get_transform(self, image, *rest):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="depth"):
        Wishful()(T.AugInput(image))
    with pytest.raises(TypeError):
        Greedy()(T.AugInput(image))


def test_image_of_another_type_is_refused(image):
    with pytest.raises(AssertionError):
        T.AugInput(image.astype(np.int32))
    with pytest.raises(AssertionError):
        T.AugInput(image[None])


def test_arrays_and_inputs_can_be_augmented(image):
    flipped, transforms = T.apply_augmentations([T.HFlipTransform(36)], image)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    inputs = T.StandardAugInput(image)
    returned, _ = T.apply_transform_gens([transforms], inputs)
    assert returned is inputs
    np.testing.assert_array_equal(inputs.image, image[:, ::-1])


def test_custom_attributes_of_inputs_pass_through(image):
    class Tagged(T.AugInput):
        def transform(self, tfm):
            super().transform(tfm)
            self.seen = [*getattr(self, "seen", []), type(tfm).__name__]

    inputs = Tagged(image)
    T.AugmentationList([T.RandomFlip(prob=1.0), T.Resize(12)])(inputs)
    assert inputs.seen == ["HFlipTransform", "ResizeTransform"]
    assert inputs.image.shape == (12, 12, 3)


def test_flip_probability_of_one_always_flips(image):
    for _ in range(5):
        assert isinstance(T.RandomFlip(prob=1.0).get_transform(image), T.HFlipTransform)
        vertical = T.RandomFlip(prob=1.0, horizontal=False, vertical=True)
        assert isinstance(vertical.get_transform(image), T.VFlipTransform)
    with pytest.raises(ValueError):
        T.RandomFlip(horizontal=True, vertical=True)
    with pytest.raises(ValueError):
        T.RandomFlip(horizontal=False, vertical=False)


def test_random_apply_decides_by_its_probability(image):
    np.random.seed(0)
    augmentation = T.RandomApply(T.HFlipTransform(36), prob=0.3)
    flips = [isinstance(augmentation(T.AugInput(image)), T.HFlipTransform) for _ in range(400)]
    assert 0.2 < np.mean(flips) < 0.4


def test_short_edge_of_zero_leaves_the_image(image):
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)


def test_range_needs_two_lengths():
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge((10, 20, 30), sample_style="range")
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge(10, sample_style="any")


@pytest.mark.parametrize("crop_type", ["relative", "relative_range", "absolute", "absolute_range"])
def test_crops_stay_inside(image, crop_type):
    size = (0.4, 0.7) if crop_type.startswith("relative") else (10, 100)
    augmentation = T.RandomCrop(crop_type, size)
    np.random.seed(2)
    for _ in range(50):
        crop = augmentation.get_transform(image)
        assert 0 <= crop.x0 <= 36 - crop.w
        assert 0 <= crop.y0 <= 24 - crop.h
    with pytest.raises(AssertionError):
        T.RandomCrop("diagonal", size)


def test_category_constraint_avoids_windows_of_one_class():
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[:, 15:] = 1
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    shares = {}
    for largest in (0.75, 1.0):
        np.random.seed(3)
        augmentation = T.RandomCrop_CategoryAreaConstraint("absolute", (16, 16), largest)
        crops = [augmentation.get_transform(image, labels).apply_segmentation(labels) for _ in range(40)]
        shares[largest] = np.mean([max(np.bincount(crop.ravel())) / crop.size < 0.75 for crop in crops])
    assert shares[0.75] > 0.9 > shares[1.0]


def test_fixed_size_crop_pads_labels_and_image_differently(image):
    inputs = T.AugInput(image, sem_seg=np.zeros((24, 36), dtype=np.uint8))
    T.FixedSizeCrop((30, 40), pad_value=7, seg_pad_value=250)(inputs)
    assert inputs.image.shape == (30, 40, 3)
    np.testing.assert_array_equal(inputs.image[:24, :36], image)
    assert (inputs.image[24:] == 7).all()
    assert (inputs.sem_seg[:, 36:] == 250).all()
    small = T.AugInput(image)
    T.FixedSizeCrop((30, 40), pad=False)(small)
    assert small.image.shape == image.shape


def test_random_resize_takes_one_of_its_shapes(image):
    np.random.seed(0)
    shapes = {T.RandomResize([(10, 12), (20, 8)]).get_transform(image).apply_image(image).shape[:2] for _ in range(20)}
    assert shapes == {(10, 12), (20, 8)}


def test_random_rotation_draws_from_choices_or_a_range(image):
    np.random.seed(0)
    angles = {T.RandomRotation([90, 180], sample_style="choice").get_transform(image).angle for _ in range(20)}
    assert angles == {90, 180}
    drawn = [T.RandomRotation([-10, 10], center=[[0.2, 0.3], [0.8, 0.7]]).get_transform(image).angle for _ in range(20)]
    assert -10 <= min(drawn) < max(drawn) <= 10
    assert isinstance(T.RandomRotation(360).get_transform(image), T.NoOpTransform)


def test_random_extent_makes_the_size_of_its_rectangle(image):
    np.random.seed(0)
    transform = T.RandomExtent((0.5, 0.5), (0.0, 0.0)).get_transform(image)
    np.testing.assert_array_equal(transform.apply_image(image), image[6:18, 9:27])


def test_augmentations_show_their_arguments():
    assert repr(T.RandomFlip(prob=0.25)) == "RandomFlip(prob=0.25)"
    assert str(T.AugmentationList([T.RandomFlip()])) == "AugmentationList[RandomFlip()]"


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_ssd_colors_do_the_same_in_both_orders_of_channels(image, image_format):
    random.seed(5)
    expected = ColorAugSSDTransform(img_format="BGR").apply_image(image)
    random.seed(5)
    transform = ColorAugSSDTransform(img_format=image_format)
    found = transform.apply_image(image[:, :, ::-1] if image_format == "RGB" else image)
    np.testing.assert_array_equal(found[:, :, ::-1] if image_format == "RGB" else found, expected)
    assert transform.apply_segmentation(image) is image
    assert transform.apply_coords(image) is image


def test_ssd_colors_know_two_orders_of_channels():
    with pytest.raises((ValueError, AssertionError)):
        ColorAugSSDTransform(img_format="L")
