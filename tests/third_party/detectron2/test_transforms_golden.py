"""Transforms and augmentations against recorded results."""

import inspect
import random
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from tests.golden_files import Golden

# Factors that the recorded colour augmentations were drawn from, where the file does not say.
_COLOR_RANGE = (0.5, 1.5)
_LIGHTING_SCALE = 0.1


@pytest.mark.golden("d2_transforms")
def test_transforms_and_augmentations_match_reference(golden: Golden):
    _check_deterministic(golden)
    _check_inverses(golden)
    _check_shape_table(golden.meta["resize_shortest_edge_table"]["rows"])
    _check_seeded(golden)
    _check_pipeline(golden)
    _check_color(golden)


def _check_deterministic(golden: Golden) -> None:
    height, width = golden.arrays["img"].shape[:2]
    transforms = _transforms(golden)
    for name, transform in transforms.items():
        _check_image(transform.apply_image(golden.arrays["img"].copy()), golden.arrays[f"{name}/img"], name)
        if f"{name}/seg" in golden.arrays:
            np.testing.assert_array_equal(
                transform.apply_segmentation(golden.arrays["seg"].copy()), golden.arrays[f"{name}/seg"], name
            )
        boxes = transform.apply_box(golden.arrays["boxes/f64"].copy())
        np.testing.assert_allclose(boxes, golden.arrays[f"{name}/boxes/f64"], atol=1e-5, rtol=1e-6, err_msg=name)
        if f"{name}_polygons" in golden.meta:
            _check_polygons(golden, name, transform)
    resize = transforms["resize"]
    _check_image(resize.apply_image(golden.arrays["img"][:, :, :1].copy()), golden.arrays["resize/gray1"], "gray")
    for name, source in (("float_img", golden.arrays["img"]), ("float_seg", golden.arrays["seg"])):
        apply = resize.apply_image if name == "float_img" else resize.apply_segmentation
        expected = golden.arrays[f"resize/{name}"]
        candidates = [source.astype(np.float32), source.astype(np.float32) / 255]
        source = min(candidates, key=lambda image: abs(float(image.mean()) - float(expected.mean())))
        np.testing.assert_allclose(apply(source), expected, atol=1e-4, rtol=1e-5)
    assert (height, width) == tuple(golden.meta["params"]["resize"][:2])


def _transforms(golden: Golden) -> dict[str, T.Transform]:
    height, width = golden.arrays["img"].shape[:2]
    params = golden.meta["params"]
    x0, y0, x1, y1, *_ = params["pad"]
    values = dict(text.split("=") for text in params["pad"][4:])
    crop_x, crop_y, crop_w, crop_h = params["crop"]
    return {
        "resize": T.ResizeTransform(*params["resize"][:4], Image.BILINEAR),
        "hflip": T.HFlipTransform(width),
        "vflip": T.VFlipTransform(height),
        "crop": T.CropTransform(crop_x, crop_y, crop_w, crop_h, width, height),
        "pad": T.PadTransform(x0, y0, x1, y1, width, height, float(values["pad_value"]), int(values["seg_pad_value"])),
        "extent": T.ExtentTransform(*params["extent"]),
    } | {
        name: T.RotationTransform(height, width, int(match[1]))
        for name in (key.removesuffix("/img") for key in golden.arrays if key.endswith("/img"))
        if (match := re.fullmatch(r"rotate(\d+)", name))
    }


def _check_inverses(golden: Golden) -> None:
    for name in ("resize", "hflip", "vflip", "crop", "pad"):
        transform = _transforms(golden)[name]
        boxes = transform.apply_box(golden.arrays["boxes/f64"].copy())
        np.testing.assert_allclose(transform.inverse().apply_box(boxes), golden.arrays["boxes/f64"], atol=1e-6)


def _check_polygons(golden: Golden, name: str, transform: T.Transform) -> None:
    polygons = [np.array(polygon, dtype=np.float64) for polygon in golden.meta["polygons"]]
    found = transform.apply_polygons(polygons)
    expected = [np.array(polygon) for polygon in golden.meta[f"{name}_polygons"]]
    assert len(found) == len(expected)
    for polygon, wanted in zip(found, expected, strict=True):
        if name == "crop":  # the first vertex and the direction may differ between versions of shapely
            assert _area(polygon) == pytest.approx(_area(wanted), rel=1e-6)
            np.testing.assert_allclose(polygon.mean(axis=0), wanted.mean(axis=0), atol=1e-6)
        else:
            np.testing.assert_allclose(polygon, wanted, atol=1e-5, rtol=1e-6)


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def _check_shape_table(rows: list[list[int]]) -> None:
    for height, width, short_edge, max_size, new_h, new_w in rows:
        shape = T.ResizeShortestEdge.get_output_shape(height, width, short_edge, max_size)
        assert tuple(shape) == (new_h, new_w)


def _augmentation(name: str, arguments: dict[str, list[Any]]) -> T.Augmentation:
    if name.startswith("crop_"):
        kind = name.removeprefix("crop_")
        size = arguments.get(name) or next(
            value for key, value in arguments.items() if key.endswith("*") and name.startswith(key[:-1])
        )
        return T.RandomCrop(kind, size)
    builders = {
        "rse_choice": T.ResizeShortestEdge,
        "rse_range": T.ResizeShortestEdge,
        "resize_scale": T.ResizeScale,
        "category_area_crop": T.RandomCrop_CategoryAreaConstraint,
        "brightness": T.RandomBrightness,
        "extent": T.RandomExtent,
        "fixed_crop": lambda *size: T.FixedSizeCrop(size),
        "flip": T.RandomFlip,
    }
    return builders[name](*arguments.get(name, []))


def _check_seeded(golden: Golden) -> None:
    for key, case in golden.meta["seeded"].items():
        augmentation = _augmentation(key.rsplit("_", 1)[0], golden.meta["aug_args"])
        np.random.seed(case["seed"])
        inputs = T.AugInput(golden.arrays["img"].copy(), sem_seg=golden.arrays["seg"].copy())
        transforms = T.TransformList([augmentation(inputs)]).transforms
        assert [transform.__class__.__name__ for transform in transforms] == [row[0] for row in case["transforms"]], key
        for transform, (_, *numbers) in zip(transforms, case["transforms"], strict=True):
            assert _numbers(transform) == pytest.approx(numbers, rel=1e-12, abs=0), key
    for key in golden.arrays:
        if match := re.fullmatch(r"(fixed_crop_seed(\d+))/img", key):
            np.random.seed(int(match[2]))
            inputs = T.AugInput(golden.arrays["img"].copy(), sem_seg=golden.arrays["seg"].copy())
            T.FixedSizeCrop(golden.arrays[key].shape[:2])(inputs)
            _check_image(inputs.image, golden.arrays[key], match[1])
            np.testing.assert_array_equal(inputs.sem_seg, golden.arrays[f"{match[1]}/seg"])


def _numbers(transform: T.Transform) -> list[float]:
    """Values of the numeric arguments, sorted by name."""
    names = sorted(inspect.signature(type(transform).__init__).parameters)
    values = [getattr(transform, name, None) for name in names]
    return [value for value in values if isinstance(value, (int, float, np.number))]


def _check_pipeline(golden: Golden) -> None:
    recipe = golden.meta["pipeline"]
    np.random.seed(recipe["seed"])
    inputs = T.AugInput(
        golden.arrays["img"].copy(), boxes=golden.arrays["boxes/f64"].copy(), sem_seg=golden.arrays["seg"].copy()
    )
    used = inputs.apply_augmentations([getattr(T, name)(*arguments) for name, *arguments in recipe["augs"]])
    assert [transform.__class__.__name__ for transform in used.transforms] == recipe["transforms"]
    _check_image(inputs.image, golden.arrays["pipeline/img"], "pipeline")
    np.testing.assert_array_equal(inputs.sem_seg, golden.arrays["pipeline/seg"])
    np.testing.assert_allclose(inputs.boxes, golden.arrays["pipeline/boxes/f64"], atol=1e-6)


def _check_color(golden: Golden) -> None:
    for name in golden.arrays:
        if name.startswith("color_ssd_"):
            image_format, seed = name.removeprefix("color_ssd_").split("_")
            transform = ColorAugSSDTransform(img_format=image_format.upper())
            random.seed(int(seed))
            _check_image(transform.apply_image(golden.arrays["img"].copy()), golden.arrays[name], name)
        elif match := re.fullmatch(r"(saturation|contrast|brightness|lighting)_seed(\d+)", name):
            kind, seed = match.groups()
            arguments = golden.meta["aug_args"].get(kind, [_LIGHTING_SCALE] if kind == "lighting" else _COLOR_RANGE)
            np.random.seed(int(seed))
            inputs = T.AugInput(golden.arrays["img"].copy())
            getattr(T, f"Random{kind.capitalize()}")(*arguments)(inputs)
            _check_image(inputs.image, golden.arrays[name], name)


def _check_image(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert found.shape == expected.shape, name
    assert found.dtype == expected.dtype, name
    difference = np.abs(found.astype(np.int64) - expected.astype(np.int64)).max()
    assert difference <= 1, f"{name}: differs by {difference} grey levels"
