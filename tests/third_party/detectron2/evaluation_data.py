"""Small data sets and predictions for the tests of evaluation."""

import itertools
import json
import math

import numpy as np
import torch

from detectron2.data import MetadataCatalog

_numbers = itertools.count()


def new_name():
    """A name for a data set that no other test has."""
    return f"test_evaluation_{next(_numbers)}"


def register(annotations, folder, **metadata):
    """Write a json file of annotations and register a new name for it; returns the name."""
    name = new_name()
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(annotations))
    MetadataCatalog.get(name).set(json_file=str(path), **metadata)
    return name


def ellipse_masks(boxes, first_seed, size):
    """Masks (n, H, W) that fill their boxes (n, 4) xyxy with ellipses, by the recipe of the goldens."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        random = np.random.RandomState(first_seed + index)
        rx = max((x1 - x0) / 2 * random.uniform(0.75, 1), 0.5)
        ry = max((y1 - y0) / 2 * random.uniform(0.75, 1), 0.5)
        masks[index] = ((x - (x0 + x1) / 2) / rx) ** 2 + ((y - (y0 + y1) / 2) / ry) ** 2 <= 1
    return torch.from_numpy(masks)


def same_metrics(results, expected, tolerance):
    """Assert that nested dicts of numbers have the same keys in the same order and equal values; None means NaN."""
    assert list(results) == list(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            same_metrics(results[key], value, tolerance)
        elif value is None or math.isnan(value):
            assert math.isnan(results[key]), f"{key} is {results[key]}, expected NaN"
        else:
            assert abs(results[key] - value) <= tolerance, f"{key} is {results[key]}, expected {value}"
