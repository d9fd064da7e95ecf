"""Pooling of boxes from feature pyramids against recorded numbers of detectron2."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from tests.golden_files import Golden


@pytest.mark.golden("d2_roi_pooler")
def test_pooled_features_match_reference(golden: Golden) -> None:
    features = pyramid(golden.meta["inputs"])
    names = sorted((name for name in golden.arrays if re.fullmatch(r"boxes\d+", name)), key=lambda name: int(name[5:]))
    boxes = [Boxes(torch.from_numpy(golden.arrays[name])) for name in names]
    tolerance = float(re.search(r"([\d.e+-]+) abs", golden.meta["tolerance"]).group(1))

    for name in golden.arrays:
        if levels := re.fullmatch(r"levels_(\d+)_(\d+)", name):
            assigned = assign_boxes_to_levels(boxes, int(levels[1]), int(levels[2]), 224, 4)
            assert_close(assigned, torch.from_numpy(golden.arrays[name]), rtol=0, atol=0)

    for name, case in golden.meta["cases"].items():
        if "scales" not in case:
            check_no_boxes(case["shape"], features, len(boxes))
            continue
        pooler = ROIPooler(case["output_size"], case["scales"], case["sampling_ratio"], case["type"])
        pooled = pooler([features[round(1 / scale)] for scale in case["scales"]], boxes)
        assert list(pooled.shape) == case["full_shape"]
        expected = torch.from_numpy(golden.arrays[name])  # of all channels or of the first ones
        assert_close(
            pooled[:, : expected.shape[1]], expected, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def check_no_boxes(shape: list[int], features: dict[int, Tensor], images: int) -> None:
    pooler = ROIPooler(tuple(shape[2:]), [1 / stride for stride in features], 0, "ROIAlignV2")
    pooled = pooler(list(features.values()), [Boxes(torch.zeros(0, 4))] * images)
    assert list(pooled.shape) == shape


def pyramid(recipe: str) -> dict[int, Tensor]:
    """Feature maps by stride, drawn as the recipe says."""
    random = np.random.RandomState(int(re.search(r"RandomState\((\d+)\)", recipe).group(1)))
    strides = [int(stride) for stride in re.search(r"strides ([\d,]+)", recipe).group(1).split(",")]
    shape = re.search(r"standard_normal\(\((\d+),(\d+),(\d+)//s,(\d+)//s\)\)", recipe)
    images, channels, height, width = map(int, shape.groups())
    return {
        stride: torch.from_numpy(
            random.standard_normal((images, channels, height // stride, width // stride)).astype(np.float32)
        )
        for stride in strides
    }
