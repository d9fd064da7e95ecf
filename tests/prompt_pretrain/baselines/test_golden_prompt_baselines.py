"""Numbers recorded from the released CoCoOp, VPT and MaPLe trainers on tiny CLIPs."""

import math
import re

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from torch import Tensor
from torch.testing import assert_close

from prompt_pretrain.baselines.learners import VPT, CoCoOp, MaPLe
from prompt_pretrain.clip import Clip, clip_from_config
from tests.golden.fill import fill
from tests.golden_files import Golden
from tests.prompt_pretrain.test_golden_pomp_loss import tiny_clip


@pytest.mark.golden("prompt_baselines")
def test_prompt_baselines(golden: Golden) -> None:
    sibling = golden.sibling("pomp_loss")
    clip = tiny_clip(sibling)
    clip.logit_scale = math.exp(sibling.meta["model"]["logit_scale"])
    if "cocoop" in golden.meta:
        check_cocoop(golden, clip)
    if "vpt" in golden.meta:
        check_vpt(golden, clip)
    if "maple" in golden.meta:
        check_maple(golden, clip.logit_scale)


def tolerance(golden: Golden, what: str) -> dict[str, float]:
    """From ``features atol 5e-5, logits atol 2e-4``."""
    found = re.search(rf"{what} atol ([0-9.e+-]+)", golden.meta["tolerance"])
    assert found, f"no tolerance of {what}: {golden.meta['tolerance']}"
    return {"atol": float(found[1]), "rtol": 0.0}


def tensor(golden: Golden, name: str) -> Tensor:
    return torch.from_numpy(golden.arrays[name])


def check_cocoop(golden: Golden, clip: Clip) -> None:
    learner = CoCoOp(clip, n_ctx=golden.meta["cocoop"]["n_ctx"], words="")
    stored = {name: tensor(golden, f"cocoop.{name.removeprefix('meta_net.')}") for name in _cocoop_names(golden)}
    learner.prompt_learner.load_state_dict(stored)
    images = tensor(golden, "cocoop.image_features")
    unit = torch.nn.functional.normalize(images, dim=1)
    bias = learner.prompt_learner.meta_net(unit).detach()
    assert_close(bias, tensor(golden, "cocoop.bias"), **tolerance(golden, "features"))
    logits = learner.logits(images, learner.prepare(golden.meta["class_names"])).detach()
    assert_close(logits, tensor(golden, "cocoop.logits"), **tolerance(golden, "logits"))


def _cocoop_names(golden: Golden) -> list[str]:
    parts = (name.removeprefix("cocoop.") for name in golden.arrays if name.startswith("cocoop."))
    return [
        f"meta_net.{part}" if part.startswith("linear") else part
        for part in parts
        if part.startswith(("linear", "ctx"))
    ]


def check_vpt(golden: Golden, clip: Clip) -> None:
    meta = golden.meta["vpt"]
    learner = VPT(clip, n_ctx=meta["n_ctx_vision"], depth=meta["depth"])
    recipe = re.search(
        r"RandomState\((\d+)\).*?prompts=([0-9.]+)\*.*images=r\.standard_normal\(\((\d+),", meta["images"]
    )
    assert recipe, f"unknown recipe of the images: {meta['images']}"
    random = RandomState(int(recipe[1]))
    shape = (meta["depth"], meta["n_ctx_vision"], learner.tower.width)
    prompts = (float(recipe[2]) * random.standard_normal(shape)).astype(np.float32)
    images = _images(random, int(recipe[3]), clip)
    if "vpt.prompts" in golden.arrays:
        assert_close(torch.from_numpy(prompts), tensor(golden, "vpt.prompts"))
    for parameter, values in zip(learner.prompts(), prompts, strict=True):
        parameter.data.copy_(torch.from_numpy(values))
    found = learner.image_features(images).detach()
    assert_close(found, tensor(golden, "vpt.image_features"), **tolerance(golden, "features"))


def check_maple(golden: Golden, logit_scale: float) -> None:
    meta = golden.meta["maple"]
    clip = clip_from_config(meta["open_clip_config"])
    fill(clip.model, skip=("logit_scale",))
    clip.logit_scale = logit_scale
    learner = MaPLe(clip, n_ctx=meta["n_ctx"], depth=meta["depth"], words=meta["ctx_init"])
    recipe = re.search(r"RandomState\((\d+)\).*images=r\.standard_normal\(\((\d+),", meta["recipe"])
    assert recipe, f"unknown recipe of the prompts: {meta['recipe']}"
    random = RandomState(int(recipe[1]))
    stored = {
        name: torch.from_numpy((scale * random.standard_normal(shape)).astype(np.float32))
        for name, (shape, scale) in meta["entries"].items()
    }
    learner.prompt_learner.load_state_dict(stored)
    images = _images(random, int(recipe[2]), clip)
    classes = learner.prepare(golden.meta["class_names"])
    features = learner.class_features(classes)
    found = {
        "maple.text_features": features,
        "maple.image_features": learner.image_features(images),
        "maple.logits": learner.logits(images, classes, features),
    }
    for name, values in found.items():
        what = "logits" if name.endswith("logits") else "features"
        assert_close(values.detach(), tensor(golden, name), **tolerance(golden, what), msg=lambda m: f"{name}: {m}")  # noqa: B023


def _images(random: RandomState, count: int, clip: Clip) -> Tensor:
    shape = (count, 3, clip.image_size, clip.image_size)
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))
