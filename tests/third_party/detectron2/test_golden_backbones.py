"""Recorded outputs of backbones built from configs; names and order of their parameters."""

import gzip
import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from detectron2.projects.deeplab import add_deeplab_config
from tests.golden.fill import fill
from tests.golden_files import GOLDEN_FOLDER, Golden

PARAMETERS = GOLDEN_FOLDER / "reference" / "d2_backbone_params.json.gz"


def config(case: dict) -> CfgNode:
    cfg = get_cfg()
    if case["deeplab_keys_added"]:
        add_deeplab_config(cfg)
    cfg.merge_from_list([part for setting in case["config"] for part in setting.split("=", 1)])
    return cfg


def recorded_input(recipe: str) -> Tensor:
    """From a sentence such as ``x = RandomState(11).standard_normal([2, 3, 64, 96])…``."""
    seed, shape = re.search(r"RandomState\((\d+)\)\.standard_normal\((\[[^]]*\])\)", recipe).groups()
    return torch.from_numpy(np.random.RandomState(int(seed)).standard_normal(json.loads(shape)).astype(np.float32))


def tolerances(text: str) -> tuple[float, float]:
    """(of samples, relative to the largest absolute value; of the L2 norm, relative), in this order in the text."""
    sample, norm = re.findall(r"\d[\d.]*e-\d+|0\.\d+", text)
    return float(sample), float(norm)


@pytest.mark.slow
@pytest.mark.golden("d2_backbones")
def test_d2_backbones(golden: Golden) -> None:
    x = recorded_input(golden.meta["input"])
    for name, case in golden.meta["cases"].items():
        backbone = build_backbone(config(case)).eval()
        fill(backbone, skip=golden.meta["skip"])
        assert sum(parameter.requires_grad for parameter in backbone.parameters()) == case["trainable_tensors"], name
        assert len(backbone.state_dict()) == case["entries"], name
        assert backbone.size_divisibility == case["size_divisibility"], name
        shapes = {output: [shape.channels, shape.stride] for output, shape in backbone.output_shape().items()}
        assert shapes == case["output_shape"], name
        with torch.no_grad():
            outputs = backbone(x)
        assert set(outputs) == set(case["outputs"]), name
        for output, recipe in case["outputs"].items():
            check_output(f"{name}/{output}", outputs[output], recipe, golden)


def check_output(name: str, found: Tensor, recipe: dict, golden: Golden) -> None:
    of_sample, of_norm = tolerances(golden.meta["tolerance"])
    assert list(found.shape) == recipe["shape"], name
    total, absolute, norm, smallest, largest = golden.arrays[f"{name}/stats"]
    limit = of_sample * max(abs(smallest), abs(largest))
    sample = torch.from_numpy(golden.arrays[f"{name}/sample"])
    assert_close(found.flatten()[:: recipe["step"]], sample, rtol=0, atol=limit, msg=lambda m: f"{name}: {m}")
    values = found.double()
    assert values.norm().item() == pytest.approx(norm, rel=of_norm), name
    assert values.abs().sum().item() == pytest.approx(absolute, rel=of_norm), name
    assert values.sum().item() == pytest.approx(total, abs=of_norm * absolute), name
    assert values.min().item() == pytest.approx(smallest, abs=limit), name
    assert values.max().item() == pytest.approx(largest, abs=limit), name


def test_parameters_have_the_published_names_shapes_and_order() -> None:
    cases = Golden(GOLDEN_FOLDER / "d2_backbones", "d2_backbones").meta["cases"]
    published = json.loads(gzip.decompress(PARAMETERS.read_bytes()))["cases"]
    assert published.keys() == cases.keys()
    for name, entries in published.items():
        with torch.device("meta"):
            backbone = build_backbone(config(cases[name]))
        found = [[key, list(value.shape), str(value.dtype)] for key, value in backbone.state_dict().items()]
        assert found == [[key, shape, f"torch.{dtype}"] for key, shape, dtype in entries], name
