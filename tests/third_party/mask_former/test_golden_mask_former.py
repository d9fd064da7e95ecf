"""MaskFormer against recorded numbers: backbones, matching, losses and the whole model."""

import re

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Instances
from mask_former.modeling.criterion import SetCriterion
from mask_former.modeling.matcher import HungarianMatcher, resize_masks
from tests.golden_files import Golden
from tests.segmentation_recipes import (
    check_sample,
    fill_by_factors,
    reference,
    registered_data_sets,
    released_config,
    segmentation_config,
    set_values,
)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d[\d.]*(?:e-?\d+)?", text)]


def seeded_input(recipe: str) -> torch.Tensor:
    """The tensor of "RandomState(<seed>).standard_normal([<shape>]) ..."."""
    seed = int(re.search(r"RandomState\((\d+)\)", recipe)[1])
    shape = [int(side) for side in re.search(r"standard_normal\(\[([\d, ]+)\]", recipe)[1].split(",")]
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.golden("zsseg_backbone")
@torch.no_grad()
def test_backbones(golden: Golden) -> None:
    (rtol,) = numbers(golden.meta["tolerance"])
    x = seeded_input(golden.meta["inputs"])
    for name, recipe in golden.meta["variants"].items():
        backbone = build_backbone(released_config(recipe)).eval()
        fill_by_factors(backbone, golden.meta, seed=recipe["fill_seed"])
        shapes = backbone.output_shape()
        assert {key: shape.stride for key, shape in shapes.items()} == recipe["strides"]
        assert backbone.size_divisibility == recipe["size_divisibility"]
        outputs = backbone(x)
        assert {key: list(value.shape) for key, value in outputs.items()} == recipe["shapes"]
        for key, value in outputs.items():
            check_sample(f"{name}.{key}", value, golden.arrays, rtol=rtol, atol=rtol * float(value.abs().max()) / 10)


@pytest.mark.golden("maskformer_swin")
@torch.no_grad()
def test_swin(golden: Golden) -> None:
    cfg = segmentation_config()
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    set_values(cfg, golden.meta["config"]["overrides"])
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    fill_by_factors(backbone, golden.meta, seed=int(re.search(r"seed=(\d+)", golden.meta["fill"])[1]))
    outputs = backbone(seeded_input(golden.meta["inputs"]))
    assert {key: list(value.shape) for key, value in outputs.items()} == golden.meta["shapes"]
    (atol,) = numbers(golden.meta["tolerance"])
    for name, value in outputs.items():
        check_sample(name, value, golden.arrays, rtol=0, atol=atol)


def test_names_of_swin() -> None:
    cfg = segmentation_config()
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    entries = reference("segmentation_names")["maskformer_swin_T_names"]["entries"]
    found = build_backbone(cfg, ShapeSpec(channels=3)).state_dict()
    assert {name: list(value.shape) for name, value in found.items()} == dict(entries)


def test_names_of_mask_former() -> None:
    cfg = released_config({"release": "coco-stuff-164k-171/maskformer_R50_bs32_60k.yaml"})
    with registered_data_sets({cfg.DATASETS.TRAIN[0] + "_": {}}):
        cfg.DATASETS.TRAIN = (cfg.DATASETS.TRAIN[0] + "_",)
        model = build_model(cfg)
    entries = reference("segmentation_names")["zsseg_names_variants"]["maskformer_R50_171"]
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert found == {name: shape for name, shape, _ in entries}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _, kind in entries if kind == "param"}


@pytest.mark.golden("zsseg_criterion")
def test_matching_and_losses(golden: Golden) -> None:
    arguments, expected, arrays = golden.meta["arguments"], golden.meta["expected"], golden.arrays
    (rtol,) = numbers(golden.meta["tolerance"])
    levels = sorted({int(key.split(".")[1]) for key in arrays if key.startswith("in.")})
    images = sorted({int(key.split(".")[1]) for key in arrays if key.startswith("target.")})
    outputs = [
        {"pred_logits": torch.tensor(arrays[f"in.{i}.logits"]), "pred_masks": torch.tensor(arrays[f"in.{i}.masks"])}
        for i in levels
    ]
    targets = []
    # The bits of a row fill whole bytes.
    width = int(re.search(r"\[n,\d+,(\d+)\]", golden.meta["inputs"]["target.b.masks"])[1])
    for b in images:
        packed = arrays[f"target.{b}.masks"]
        masks = torch.from_numpy(np.unpackbits(packed, axis=-1, count=width).astype(bool))
        targets.append({"labels": torch.from_numpy(arrays[f"target.{b}.labels"]), "masks": masks})
    matcher = HungarianMatcher(arguments["cost_class"], arguments["cost_mask"], arguments["cost_dice"])
    for i, level in enumerate(outputs):
        found = [[queries.tolist(), true.tolist()] for queries, true in matcher(level, targets)]
        assert found == expected[f"match_level_{i}"]
    main = outputs[-1]
    for b in images:
        if f"cost.{b}.focal" in arrays:
            masks = resize_masks(targets[b]["masks"], main["pred_masks"].shape[-2:])
            costs = matcher.costs(main["pred_logits"][b], main["pred_masks"][b], targets[b]["labels"], masks)
            for name, value in costs.items():
                assert_close(value, torch.from_numpy(arrays[f"cost.{b}.{name}"]), rtol=rtol, atol=1e-6)

    for eos_coef in arguments["eos_coef"]:
        name = f"eos_{eos_coef:g}"
        criterion = SetCriterion(
            arguments["num_classes"], matcher, arguments["weight_dict"], eos_coef, arguments["losses"]
        )
        leaf = {key: value.clone().requires_grad_() for key, value in main.items()}
        losses = criterion(leaf | {"aux_outputs": outputs[:-1]}, targets)
        weighted = {key: value * criterion.weight_dict[key] for key, value in losses.items()}
        for found, recorded in ((losses, expected[f"loss_{name}"]), (weighted, expected[f"weighted_{name}"])):
            assert {key: float(value) for key, value in found.items()} == pytest.approx(recorded, rel=rtol)
        sum(weighted.values()).backward()
        norms = [float(leaf[key].grad.norm()) for key in ("pred_logits", "pred_masks")]
        assert norms == pytest.approx(expected[f"grad_norm_{name}"], rel=10 * rtol)
        check_sample(f"grad_{name}.logits", leaf["pred_logits"].grad, arrays, rtol=10 * rtol, atol=1e-7)
        check_sample(f"grad_{name}.masks", leaf["pred_masks"].grad, arrays, rtol=10 * rtol, atol=1e-7)


@pytest.mark.golden("maskformer_full_R50")
def test_whole_model(golden: Golden) -> None:
    meta, arrays = golden.meta, golden.arrays
    atol, rtol = numbers(meta["tolerance"])
    skip = re.findall(r"'([^']+)'", meta["fill"])
    seed = int(re.search(r"seed=(\d+)", meta["fill"])[1])
    with registered_data_sets(meta["datasets"]):
        model = build_model(released_config(meta["config"]))
    fill_by_factors(model, meta, seed=seed, skip=skip)
    image = torch.from_numpy(arrays["image"])
    height, width = map(int, re.search(r"\[(\d+), (\d+)\]", meta["inputs"]["image"]).groups())
    record = {"image": image, "height": height, "width": width}
    model.eval()
    for name in (name for name in ("sem.after", "sem.before") if name in arrays):
        model.sem_seg_postprocess_before_inference = name == "sem.before"
        with torch.no_grad():
            found = model([record])[0]["sem_seg"]
        check_sample(name, found, arrays, rtol=rtol, atol=atol)
        agreement = (found.argmax(0).numpy() == arrays[f"{name}.argmax"]).mean()
        assert agreement > 0.999

    labels = torch.from_numpy(arrays["label"]).long()
    classes = labels.unique()[labels.unique() != 255]
    instances = Instances(tuple(labels.shape), gt_classes=classes, gt_masks=labels[None] == classes[:, None, None])
    model.train()
    losses = model([record | {"instances": instances}])
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(meta["expected"]["losses"], rel=rtol)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    norms = {name: float(parameters[name].grad.norm()) for name in meta["expected"]["grad_norms"]}
    assert norms == pytest.approx(meta["expected"]["grad_norms"], rel=10 * rtol)
