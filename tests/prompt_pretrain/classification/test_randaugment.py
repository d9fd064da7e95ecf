import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from prompt_pretrain.classification.randaugment import OPERATIONS, PROBABILITY, RandAugment2

# name -> (low, high, sign is tossed), as published
TABLE = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Identity": None,
    "Brightness": (0.1, 1.9, False),
    "Color": (0.1, 1.9, False),
    "Contrast": (0.1, 1.9, False),
    "Sharpness": (0.1, 1.9, False),
    "Posterize": (4, 8, False),
    "Solarize": (0, 256, False),
    "Rotate": (-30, 30, True),
    "ShearX": (-0.3, 0.3, True),
    "ShearY": (-0.3, 0.3, True),
    "TranslateX": (-0.3, 0.3, True),
    "TranslateY": (-0.3, 0.3, True),
}
BY_NAME = {operation.name: operation for operation in OPERATIONS}


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(20, 230, (20, 30, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_operations_and_ranges_are_the_published_ones():
    assert set(BY_NAME) == set(TABLE)
    assert len(OPERATIONS) == 15
    for name, row in TABLE.items():
        if row is not None:
            assert (BY_NAME[name].low, BY_NAME[name].high, BY_NAME[name].signed) == row
    assert PROBABILITY == 0.6


def test_point_operations(image):
    p = pixels(image)
    assert np.array_equal(pixels(BY_NAME["Solarize"].apply(image, 100.0)), np.where(p >= 100, 255 - p, p))
    assert np.array_equal(pixels(BY_NAME["Posterize"].apply(image, 4.99)), p & 0xF0)
    assert np.array_equal(pixels(BY_NAME["Invert"].apply(image, 0)), 255 - p)
    assert np.array_equal(pixels(BY_NAME["Identity"].apply(image, 0)), p)
    assert np.array_equal(
        pixels(BY_NAME["Brightness"].apply(image, 0.5)), pixels(ImageEnhance.Brightness(image).enhance(0.5))
    )
    assert np.array_equal(pixels(BY_NAME["Equalize"].apply(image, 0)), pixels(ImageOps.equalize(image)))


def test_geometric_operations_shift_without_blending_and_fill_with_black(image):
    p = pixels(image)
    right = pixels(BY_NAME["TranslateX"].apply(image, -0.2))  # 6 of 30 columns
    assert np.array_equal(right[:, 6:], p[:, :-6])
    assert (right[:, :6] == 0).all()
    up = pixels(BY_NAME["TranslateY"].apply(image, 0.25))  # 5 of 20 rows
    assert np.array_equal(up[:-5], p[5:])
    assert (up[-5:] == 0).all()
    sheared = pixels(BY_NAME["ShearX"].apply(image, 0.3))
    for y in range(20):
        shift = int(np.floor(0.3 * (y + 0.5) + 0.5))
        assert np.array_equal(sheared[y, : 30 - shift], p[y, shift:])
    turned = pixels(BY_NAME["Rotate"].apply(image, 30))
    assert (turned[0, 0] == 0).all()
    assert {tuple(c) for c in turned.reshape(-1, 3)} <= {tuple(c) for c in p.reshape(-1, 3)} | {(0, 0, 0)}


def test_each_operation_is_drawn_equally_often_and_applied_in_six_of_ten_cases(image, monkeypatch):
    calls: list[tuple[str, float]] = []
    spies = tuple(
        operation._replace(apply=lambda im, v, name=operation.name: (calls.append((name, v)), im)[1])
        for operation in OPERATIONS
    )
    monkeypatch.setattr("prompt_pretrain.classification.randaugment.OPERATIONS", spies)
    source = torch.Generator().manual_seed(0)
    augment = RandAugment2(2)
    for _ in range(5000):
        augment(image, source)
    assert abs(len(calls) / 10000 - 0.6) < 0.02
    for name, row in TABLE.items():
        values = np.array([v for called, v in calls if called == name])
        assert 320 < len(values) < 480
        if row is not None:
            low, high, _ = row
            assert values.min() >= low and values.max() <= high
            assert values.min() < low + 0.05 * (high - low) and values.max() > high - 0.05 * (high - low)


def test_zero_operations_change_nothing(image):
    assert np.array_equal(pixels(RandAugment2(0)(image, torch.Generator())), pixels(image))
