"""The data side of the detector against the published implementation."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import detection
from centernet.config import add_centernet_config
from detection.data.datasets import custom_load_lvis_json
from detection.data.samplers import MultiDatasetSampler, repeat_factors_from_tag_frequency
from detection.data.transforms import EfficientDetResizeCrop
from detectron2.config import CfgNode, get_cfg
from prompt_pretrain.training_loader import group_indices, grouped_batches
from tests.golden.fill import fill
from tests.golden_files import Golden
from tests.golden_recipes import apply_settings, close, released_settings, tolerance


@pytest.mark.golden("detic_data")
def test_detic_data(golden: Golden, tmp_path: Path) -> None:
    check_resize_crop(golden)
    check_sampler(golden)
    check_grouping(golden)
    check_annotation_file(golden, tmp_path)
    check_optimizer(golden)
    check_class_sampling(golden)


def number_in(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern!r} in {text!r}"
    return int(found[1])


def check_resize_crop(golden: Golden) -> None:
    first_seed = number_in(golden.meta["aug"]["note"], r"RandomState\((\d+)\+seed\)")
    for number, case in enumerate(golden.meta["aug"]["cases"]):
        seed, height, width = case["np.random.seed"], case["h"], case["w"]
        image = np.random.RandomState(first_seed + seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
        np.random.seed(seed)
        transform = EfficientDetResizeCrop(case["size"], case["scale"]).get_transform(image)
        for name in ("scaled_h", "scaled_w", "offset_y", "offset_x"):
            assert getattr(transform, name) == case[name], f"{golden.name} case {number}: {name}"
        assert transform.img_scale == pytest.approx(case["img_scale"], rel=1e-12)

        corners = np.array([(0, 0), (width - 1, 0), (width / 2, height / 3), (width, height)], dtype=np.float64)
        close(golden, transform.apply_coords(corners.copy()), f"aug{number}.coords")
        assert_close(transform.inverse_apply_coords(transform.apply_coords(corners.copy())), corners)
        box = transform.apply_box(np.array([case["box_in"]]))[0]
        np.testing.assert_allclose(box, case["box_out"], **tolerance(golden))
        np.testing.assert_allclose(transform.inverse_apply_box(box)[0], case["box_in"], **tolerance(golden))
        check_pixels(golden, f"aug{number}.image", transform.apply_image(image), case["out_shape"])


def check_pixels(golden: Golden, name: str, pixels: np.ndarray, shape: list[int]) -> None:
    """Pillow's resizing may differ by 1."""
    sample, stats = golden.arrays[f"{name}.sample"], golden.arrays[f"{name}.stats"]
    assert list(pixels.shape) == shape == golden.arrays[f"{name}.shape"].tolist()
    values = pixels.astype(np.float64).reshape(-1)
    positions = np.linspace(0, values.size - 1, len(sample)).astype(np.int64)
    assert np.abs(values[positions] - sample).max() <= 1
    found = np.array([values.sum(), np.linalg.norm(values), values.min(), values.max()])
    assert (np.abs(found - stats) <= [values.size, values.size**0.5, 1, 1]).all()


def records(golden: Golden) -> list[dict[str, Any]]:
    """The recorded images, their classes as annotations or as image labels, whichever their data set has."""
    kinds = golden.meta["sampler"]["args"]["dataset_ann"]
    return [
        {key: record[key] for key in ("dataset_source", "width", "height")}
        | (
            {"annotations": [{"category_id": category} for category in record["categories"]]}
            if kinds[record["dataset_source"]] == "box"
            else {"annotations": [], "pos_category_ids": record["categories"]}
        )
        for record in golden.meta["sampler"]["dataset_dicts"]
    ]


def check_sampler(golden: Golden) -> None:
    recipe = golden.meta["sampler"]
    sampler = MultiDatasetSampler(records(golden), **recipe["args"])
    close(golden, sampler.weights, "sampler.weights")
    first = [index for index, _ in zip(sampler, golden.arrays["sampler.first"], strict=False)]
    close(golden, np.array(first), "sampler.first")
    source = number_in(recipe["keys"], r"data ?set (\d+) alone")
    alone = [record for record in records(golden) if record["dataset_source"] == source]
    factors = repeat_factors_from_tag_frequency(alone, recipe["args"]["repeat_threshold"])
    close(golden, factors, "sampler.tag_repeat")


def check_grouping(golden: Golden) -> None:
    groups = group_indices(records(golden), by_source=True)
    count = len(golden.meta["sampler"]["args"]["dataset_ratio"])
    cases = {key: value for key, value in golden.meta["grouping"].items() if key != "input"}
    assert cases
    for name, expected in cases.items():
        sizes = [int(size) for size in re.findall(r"_(\d+)", name)]
        sizes = sizes * count if len(sizes) == 1 else sizes
        batch_sizes = [sizes[group // 2] for group in range(2 * count)]
        indices = iter(golden.arrays["sampler.first"].tolist())
        batches = list(grouped_batches(indices, lambda index: int(groups[index]), batch_sizes))
        assert batches == expected, f"{golden.name}: {name}"


def check_annotation_file(golden: Golden, folder: Path) -> None:
    recipe = golden.meta["lvis_json"]
    file = folder / "annotations.json"
    file.write_text(json.dumps(recipe["input"]))
    assert custom_load_lvis_json(str(file), recipe["image_root"]) == recipe["records"]


def all_keys() -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    detection.add_detic_config(cfg)
    return cfg


def check_optimizer(golden: Golden) -> None:
    from detection.optimizer import build_custom_optimizer

    recipe = golden.meta["optimizer"]
    first_seed = number_in(recipe["step"], r"RandomState\((\d+)\+j\)")
    for kind, groups in recipe["groups"].items():
        module = build_module(recipe["module"])
        fill(module)
        settings = {**released_settings(recipe["config"]), **recipe["overrides"], "SOLVER.OPTIMIZER": kind}
        optimizer = build_custom_optimizer(apply_settings(all_keys(), settings), module)
        names = {parameter: name for name, parameter in module.named_parameters()}
        found = [[names[g["params"][0]], g["lr"], g["weight_decay"]] for g in optimizer.param_groups]
        assert found == [[name, pytest.approx(lr), pytest.approx(decay)] for name, lr, decay in groups]
        for j, parameter in enumerate(module.parameters()):
            if parameter.requires_grad:
                gradient = np.random.RandomState(first_seed + j).standard_normal(tuple(parameter.shape))
                parameter.grad = torch.from_numpy(gradient.astype(np.float32))
        optimizer.step()
        for name, parameter in module.named_parameters():
            close(golden, parameter, f"opt.{kind}.{name}")


def build_module(text: str) -> nn.Module:
    """The module that ``name=Linear(3,4); other=Sequential(...); frozen=... without grad; tied=name`` describes."""
    module = nn.Module()
    for part in text.split(";"):
        name, expression = part.strip().split("=")
        expression, *frozen = expression.split(" without grad")
        child = build_layer(ast.parse(expression.strip(), mode="eval").body, module)
        child.requires_grad_(not frozen and all(parameter.requires_grad for parameter in child.parameters()))
        module.add_module(name, child)
    return module


def build_layer(node: ast.expr, module: nn.Module) -> nn.Module:
    if isinstance(node, ast.Name):  # one that is there already
        return getattr(module, node.id)
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    arguments = [
        argument.value if isinstance(argument, ast.Constant) else build_layer(argument, module)
        for argument in node.args
    ]
    return {"Sequential": nn.Sequential, "Linear": nn.Linear, "LayerNorm": nn.LayerNorm}[node.func.id](*arguments)


def check_class_sampling(golden: Golden) -> None:
    from detection.class_sampling import sample_classes

    recipe = golden.meta["dynamic"]
    weight_seed, low, high, count = map(
        int, re.search(r"RandomState\((\d+)\)\.randint\((\d+), ?(\d+), ?(\d+)\)", recipe["freq_weight"]).groups()
    )
    weight = torch.from_numpy(np.sqrt(np.random.RandomState(weight_seed).randint(low, high, count))).float()
    seeds = re.search(r"manual_seed\((\d+)\) before box, (\d+) before image", recipe["seeds"])
    cases = {"box": ("gt_classes", weight), "image": ("image_labels", None)}
    for (name, (labels, weights)), seed in zip(cases.items(), seeds.groups(), strict=True):
        torch.manual_seed(int(seed))
        inds, positions = sample_classes(
            [label for of_image in recipe[labels] for label in of_image],
            num_classes=recipe["num_classes"],
            num_sample_cats=recipe["num_sample_cats"],
            weight=weights,
        )
        close(golden, inds, f"dynamic.{name}.inds")
        close(golden, positions, f"dynamic.{name}.map")
