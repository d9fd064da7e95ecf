"""Recorded outputs of the published detectors' backbones."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

import detection  # noqa: F401  registers the backbones
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, build_backbone
from tests.detection.released_models import released_config
from tests.golden_files import Golden
from tests.golden_recipes import close_in_brief, fill_by_rules


@pytest.mark.slow
@pytest.mark.golden("detic_backbones")
@torch.no_grad()
def test_detic_backbones(golden: Golden) -> None:
    even, odd = recorded_inputs(golden.meta["input_recipe"])
    for name, case in golden.meta["cases"].items():
        cfg = released_config(case["config"], case["overrides"])
        assert case["builder"] == cfg.MODEL.BACKBONE.NAME and case["builder"] in BACKBONE_REGISTRY, name
        backbone = build_backbone(cfg).eval()
        fill_by_rules(backbone, case)
        assert backbone.size_divisibility == case["size_divisibility"], name
        assert shapes(backbone) == case["output_shape"], name
        assert shapes(backbone.bottom_up) == case["bottom_up_features"], name
        features = backbone(even)
        assert list(features) == list(case["output_shape"]), name
        for level, feature in features.items():
            close_in_brief(golden, feature, f"{name}.{level}")
        inputs = {"bottom_up": even}
        if any(key.startswith(f"{name}.odd.") for key in golden.arrays):
            inputs["odd"] = odd
        for part, x in inputs.items():
            for feature_name, feature in backbone.bottom_up(x).items():
                close_in_brief(golden, feature, f"{name}.{part}.{feature_name}")


def recorded_inputs(recipe: str) -> tuple[Tensor, Tensor | None]:
    """From a sentence such as ``…; seed=91; FPN input 96x128; odd: seed+1, 90x117``, where the last part may lack."""
    seed = int(re.search(r"seed=(\d+)", recipe)[1])
    even = re.search(r"FPN input (\d+)x(\d+)", recipe).groups()
    further, *odd = re.search(r"odd: seed\+(\d+), (\d+)x(\d+)|$", recipe).groups()
    return image(seed, even), image(seed + int(further), odd) if further else None


def image(seed: int, size: tuple[str, ...] | list[str]) -> Tensor:
    shape = (1, 3, *map(int, size))
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def shapes(backbone: Backbone) -> dict[str, list[int]]:
    return {name: [shape.channels, shape.stride] for name, shape in backbone.output_shape().items()}
