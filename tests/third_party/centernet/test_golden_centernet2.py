"""A whole CenterNet2 against recorded numbers, and the names of the parameters of both released kinds of models."""

import gzip
import json
from typing import Any

import pytest
import torch
from torch import nn

import centernet  # noqa: F401  registers the models
from centernet.config import add_centernet_config
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tests.golden_files import GOLDEN_FOLDER, Golden
from tests.golden_recipes import (
    apply_settings,
    close,
    close_detections,
    close_in_brief,
    fill_by_rules,
    recorded_ground_truth,
    recorded_images,
    released_settings,
)

PARAMETERS = GOLDEN_FOLDER / "reference" / "centernet2_params.json.gz"


def config(name: str, overrides: dict[str, Any], device: str = "cpu") -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    apply_settings(cfg, released_settings(name) | overrides)
    cfg.MODEL.DEVICE = device
    return cfg


def filled_model(golden: Golden, overrides: dict[str, Any]) -> nn.Module:
    model = build_model(config(golden.meta["config"], overrides))
    fill_by_rules(model, golden.meta)
    return model


@pytest.mark.slow
@pytest.mark.golden("centernet2_r50")
def test_centernet2_r50(golden: Golden) -> None:
    inputs = [{"image": image} for image in recorded_images(golden)]
    check_inference(golden, filled_model(golden, golden.meta["overrides"]).eval(), inputs)
    sizes = [entry["image"].shape[1:] for entry in inputs]
    for entry, objects in zip(inputs, recorded_ground_truth(golden, sizes), strict=True):
        entry["instances"] = objects
    overrides = golden.meta["overrides"] | golden.meta["train_overrides"]
    check_training(golden, filled_model(golden, overrides).train(), inputs)


@torch.no_grad()
def check_inference(golden: Golden, model: nn.Module, inputs: list[dict[str, Any]]) -> None:
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    recorded = {key.split(".")[1] for key in golden.arrays if key.startswith("feat.")}
    assert recorded == set(features)
    for name in recorded:
        close_in_brief(golden, features[name], f"feat.{name}")
    proposals, _ = model.proposal_generator(images, features)
    for i, found in enumerate(proposals):
        close_detections(golden, f"proposals.{i}", found.proposal_boxes.tensor, found.objectness_logits)
    for i, found in enumerate(model.inference(inputs, do_postprocess=False)):
        close_detections(golden, f"det.{i}", found.pred_boxes.tensor, found.scores, found.pred_classes)


def check_training(golden: Golden, model: nn.Module, inputs: list[dict[str, Any]]) -> None:
    with EventStorage():
        losses = model(inputs)
    assert set(losses) == {key.removeprefix("train.") for key in golden.arrays if key.startswith("train.")}
    for key, loss in losses.items():
        close(golden, loss, f"train.{key}")
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    for key in (key for key in golden.arrays if key.startswith("gradnorm.")):
        close(golden, parameters[key.removeprefix("gradnorm.")].grad.norm(), key)


def test_parameters_have_the_published_names_shapes_and_order() -> None:
    for name, entries in json.loads(gzip.decompress(PARAMETERS.read_bytes())).items():
        with torch.device("meta"):
            model = build_model(config(name, {}, device="meta"))
        trainable = {key: each.requires_grad for key, each in model.named_parameters()}
        found = []
        for key, value in model.state_dict().items():
            kind = {True: "param", False: "frozen_param", None: "buffer"}[trainable.get(key)]
            found.append([key, list(value.shape), str(value.dtype).removeprefix("torch."), kind])
        assert found == entries, name
