"""Whole models against recorded numbers of detectron2: detections, losses and gradients; names of their parameters."""

import ast
import gzip
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from tests.golden.fill import fill
from tests.golden_files import GOLDEN_FOLDER, Golden

PARAMETERS = GOLDEN_FOLDER / "reference" / "d2_params_rcnn.json.gz"


def config(settings: list[str], device: str = "cpu") -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list([part for setting in settings for part in setting.split("=", 1)])
    cfg.MODEL.DEVICE = device
    return cfg


def filled_model(case: dict[str, Any], skip: list[str]) -> nn.Module:
    model = build_model(config(case["config"]))
    fill(model, skip=skip)
    with torch.no_grad():
        for name, scale in case["last_layer_scales"].items():
            layer = model.get_submodule(name)
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
        for name, bias in case["last_layer_bias"].items():
            model.get_submodule(name).bias.copy_(torch.tensor(bias))
    return model


def recorded_images(recipe: str) -> list[dict[str, Any]]:
    """From a sentence such as ``r=RandomState(91); … for (h,w) in [(96, 128), …]; … height=int(1.5h), …``."""
    seed = int(re.search(r"RandomState\((\d+)\)", recipe)[1])
    sizes = ast.literal_eval(re.search(r"in (\[\(.*?\)\])", recipe)[1])
    taller, wider = (float(re.search(rf"{side}=int\(([\d.]+)", recipe)[1]) for side in ("height", "width"))
    generator = np.random.RandomState(seed)
    return [
        {
            "image": torch.from_numpy(generator.randint(0, 256, (3, h, w)).astype(np.uint8)),
            "height": int(taller * h),
            "width": int(wider * w),
        }
        for h, w in sizes
    ]


def tolerances(text: str) -> dict[str, float]:
    """From ``losses 1e-3 relative; boxes 0.05 px; …; masks <=3 pixels; gradient norms 1%``."""
    found = {}
    for part in text.split(";"):
        match = re.match(r"\s*([a-z ]+?) (?:<=)?([\d.]+(?:e-?\d+)?)(%?)", part)
        if match:
            found[match[1]] = float(match[2]) / (100 if match[3] else 1)
    return found


@pytest.mark.slow
@pytest.mark.golden("d2_rcnn")
def test_d2_rcnn(golden: Golden) -> None:
    limits = tolerances(golden.meta["tolerance"])
    for name, case in golden.meta["cases"].items():
        images = recorded_images(golden.meta["input"])
        model = filled_model(case, golden.meta["skip"])
        check_inference(name, model.eval(), case["inference"], images, golden, limits)
        add_targets(name, images, case["targets"], golden)
        check_training(name, model.train(), case, images, limits)


def check_inference(
    name: str,
    model: nn.Module,
    expected: dict[str, Any],
    images: list[dict[str, Any]],
    golden: Golden,
    limits: dict[str, float],
) -> None:
    with torch.no_grad():
        outputs = model(images)
        if "batch_shape" in expected:
            batch = model.preprocess_image(images)
            assert list(batch.tensor.shape) == expected["batch_shape"], name
            proposals, losses = model.proposal_generator(batch, model.backbone(batch.tensor))
            assert losses == {}
    for i, output in enumerate(outputs):
        recipe, prefix = expected[f"img{i}"], f"{name}/img{i}"
        if "sem_seg" in output:
            check_scores(f"{prefix}/sem_seg", output["sem_seg"], recipe["shape"], golden, limits["scores"])
            continue
        assert len(proposals[i]) == recipe["n_proposals"], prefix
        first = golden.arrays[f"{prefix}/proposals_first30"]
        boxes, logits = proposals[i].proposal_boxes.tensor, proposals[i].objectness_logits
        close(boxes[: len(first)], first, limits["boxes"], f"{prefix}/proposals")
        first = golden.arrays[f"{prefix}/proposal_logits_first30"]
        close(logits[: len(first)], first, limits["scores"], f"{prefix}/logits")

        found = output["instances"]
        assert len(found) == recipe["n"] and list(found.image_size) == recipe["size"], prefix
        close(found.pred_boxes.tensor, golden.arrays[f"{prefix}/boxes"], limits["boxes"], f"{prefix}/boxes")
        close(found.scores, golden.arrays[f"{prefix}/scores"], limits["scores"], f"{prefix}/scores")
        close(found.pred_classes, golden.arrays[f"{prefix}/classes"], 0, f"{prefix}/classes")
        assert found.has("pred_masks") == (f"{prefix}/mask_area" in golden.arrays), prefix
        if found.has("pred_masks"):
            areas = found.pred_masks.flatten(1).sum(dim=1)
            close(areas, golden.arrays[f"{prefix}/mask_area"], limits["masks"], f"{prefix}/mask_area")
            if len(found):
                mask = found.pred_masks[0].flatten().numpy()
                recorded = np.unpackbits(golden.arrays[f"{prefix}/mask0"])[: mask.size]
                assert (mask != recorded).sum() <= limits["masks"], prefix


def check_scores(name: str, found: Tensor, shape: list[int], golden: Golden, limit: float) -> None:
    """Every k-th score, and sum, sum of absolute values, L2 norm, minimum and maximum."""
    assert list(found.shape) == shape, name
    sample, values = golden.arrays[f"{name}/sample"], found.flatten()
    # Only the number of samples is recorded; several steps may give as many.
    steps = (step for step in range(1, len(values) + 1) if -(-len(values) // step) == len(sample))
    candidates = [values[::step] for step in steps]
    close(min(candidates, key=lambda each: float((each - torch.from_numpy(sample)).abs().max())), sample, limit, name)
    values = found.double()
    sums = torch.stack((values.sum(), values.abs().sum(), values.norm(), values.min(), values.max()))
    expected = golden.arrays[f"{name}/stats"]
    assert_close(sums[1:3], torch.from_numpy(expected[1:3]), rtol=limit, atol=0)
    close(sums[0], expected[0], limit * expected[1], f"{name}: sum")
    close(sums[3:], expected[3:], limit * np.abs(expected[3:]).max(), f"{name}: range")


def close(found: Tensor, recorded: np.ndarray, limit: float, name: str) -> None:
    assert_close(found, torch.as_tensor(recorded), rtol=0, atol=limit, msg=lambda text: f"{name}: {text}")


def add_targets(name: str, images: list[dict[str, Any]], targets: list[dict[str, list]], golden: Golden) -> None:
    for i, (entry, target) in enumerate(zip(images, targets, strict=True)):
        entry["instances"] = Instances(
            tuple(entry["image"].shape[1:]),
            gt_boxes=Boxes(torch.tensor(target["boxes"], dtype=torch.float32).reshape(-1, 4)),
            gt_classes=torch.tensor(target["classes"], dtype=torch.int64),
            gt_masks=PolygonMasks([[np.array(polygon)] for polygon in target["polygons"]]),
        )
        semantic = golden.arrays.get(f"{name}/img{i}/sem_target")
        if semantic is not None:
            entry["sem_seg"] = torch.from_numpy(semantic.astype(np.int64))


def check_training(
    name: str, model: nn.Module, case: dict[str, Any], images: list[dict[str, Any]], limits: dict[str, float]
) -> None:
    with EventStorage() as storage:
        losses = model(images)
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(case["losses"], rel=limits["losses"])
    stats = {key: value for key, (value, _) in storage.latest().items()}
    assert stats == pytest.approx(case["train_stats"], rel=limits["losses"], abs=limits["scores"]), name
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    assert sum(each.grad is not None for each in parameters.values()) == case["n_params_with_grad"], name
    norms = {key: parameters[key].grad.norm().item() for key in case["grad_norms"]}
    assert norms == pytest.approx(case["grad_norms"], rel=limits["gradient norms"]), name


def test_parameters_have_the_published_names_shapes_and_order() -> None:
    for name, published in json.loads(gzip.decompress(PARAMETERS.read_bytes()))["models"].items():
        with torch.device("meta"):
            model = build_model(config(published["config"], device="meta"))
        found = [[key, list(value.shape), str(value.dtype)] for key, value in model.state_dict().items()]
        assert found == [[key, shape, f"torch.{dtype}"] for key, shape, dtype in published["entries"]], name
        assert sum(parameter.requires_grad for parameter in model.parameters()) == published["trainable"], name
