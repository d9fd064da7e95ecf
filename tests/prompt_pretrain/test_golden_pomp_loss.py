"""Numbers recorded from the released POMP trainer on a tiny CLIP: features, logits, losses, gradients."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.local_contrast import (
    full_contrast_logits,
    full_contrast_loss,
    local_contrast_logits,
    local_contrast_loss,
    local_correction,
)
from prompt_pretrain.prompt_tokens import POSITIONS, tokenize_prompts
from prompt_pretrain.templates import load_templates
from prompt_pretrain.text_encoder import METHODS, TextEncoder, encode_templates
from tests.golden.fill import fill
from tests.golden_files import GOLDEN_FOLDER, Golden

_MASKED_BELOW = -1e5


def tiny_clip(golden: Golden) -> Clip:
    """The golden's CLIP: its config, filled by name."""
    model = golden.meta["model"]
    clip = clip_from_config(model["open_clip_config"])
    fill(clip.model, skip=tuple(model["skip"]))
    clip.model.logit_scale.data.fill_(model["logit_scale"])
    return clip


def tolerance(golden: Golden, what: str) -> dict[str, float]:
    """``atol`` and ``rtol`` from the golden's text, e.g. ``atol 5e-5 (rtol 1e-4)``."""
    found = dict(re.findall(r"(atol|rtol)\s+([0-9.e+-]+)", golden.meta["tolerance"][what]))
    return {"atol": float(found.get("atol", 0)), "rtol": float(found.get("rtol", 0))}


def tensor(golden: Golden, name: str) -> Tensor:
    return torch.from_numpy(golden.arrays[name])


def margin_of(text: str) -> str | float:
    return float(text.removeprefix("fixed")) if text.startswith("fixed") else text


@pytest.mark.golden("pomp_loss")
def test_pomp_loss(golden: Golden) -> None:
    clip = tiny_clip(golden)
    scale = math.exp(golden.meta["model"]["logit_scale"])
    check_features(golden, clip)
    if "zeroshot" in golden.meta:
        check_templates(golden, clip)
    for name, case in golden.meta["cases"].items():
        for method in METHODS:
            check_case(golden, clip, scale, name, case, method)


def test_the_tiny_clip_has_the_published_parameter_names() -> None:
    golden = Golden(GOLDEN_FOLDER / "pomp_loss", "pomp_loss")
    listed = json.loads(golden.reference(golden.meta["model"]["parameters"]).read_text())
    found = [[name, list(value.shape)] for name, value in tiny_clip(golden).model.state_dict().items()]
    assert sorted(found) == sorted(listed)


def check_features(golden: Golden, clip: Clip) -> None:
    names, exact = golden.meta["class_names"], tolerance(golden, "embeddings")
    for array in golden.arrays:
        found = re.fullmatch(r"class_embeddings_(\d+)_(\w+)", array)
        if found is None:
            continue
        n_ctx, position = int(found[1]), found[2]
        assert position in POSITIONS
        tokens = tokenize_prompts(names, clip.tokenizer, n_ctx, position)
        for method in METHODS:
            features = TextEncoder(clip, method)(tokens, tensor(golden, f"ctx_{n_ctx}"))
            assert_close(features, tensor(golden, array), **exact, msg=lambda m: f"{array}, {method}: {m}")  # noqa: B023
        if position == "end" and f"logits_all_{n_ctx}" in golden.arrays:
            found = full_contrast_logits(tensor(golden, "image_features"), features, clip.model.logit_scale.exp())
            assert_close(found.detach(), tensor(golden, f"logits_all_{n_ctx}"), **tolerance(golden, "logits"))
    if "tower_images" not in golden.meta:
        return
    recipe = re.search(r"RandomState\((\d+)\)\.standard_normal\(\((\d+),", golden.meta["tower_images"])
    assert recipe, f"unknown recipe of the tower images: {golden.meta['tower_images']}"
    shape = (int(recipe[2]), 3, clip.image_size, clip.image_size)
    images = np.random.RandomState(int(recipe[1])).standard_normal(shape).astype(np.float32)
    assert_close(clip.encode_image(torch.from_numpy(images)), tensor(golden, "tower_image_features"), **exact)


def check_templates(golden: Golden, clip: Clip) -> None:
    names, exact = golden.meta["class_names"], tolerance(golden, "embeddings")
    hard = encode_templates(clip, names, ["a photo of a {}."], normalize=False)
    assert_close(hard, tensor(golden, "hard_prompt_embeddings"), **exact)
    custom = golden.meta["zeroshot"]["custom_template"]
    unit = encode_templates(clip, names, [custom])
    recorded = tensor(golden, "zeroshot_custom")
    assert_close(unit, torch.nn.functional.normalize(recorded, dim=1), **exact)
    ensemble = encode_templates(clip, names, [*load_templates("imagenet_select_7"), custom])
    assert_close(ensemble, tensor(golden, "zeroshot_ensemble"), **exact)


def check_case(golden: Golden, clip: Clip, scale: float, name: str, case: dict, method: str) -> None:
    meta = golden.meta
    images, labels = tensor(golden, "image_features"), torch.tensor(meta["labels"])
    num_classes, class_specific = meta["n_classes"], case["ctx"] not in golden.arrays
    assert num_classes == len(meta["class_names"])
    ctx = csc_contexts(golden) if class_specific else tensor(golden, case["ctx"])
    ctx.requires_grad_()
    n_ctx = ctx.shape[-2]
    prompts = tokenize_prompts(meta["class_names"], clip.tokenizer, n_ctx, case.get("position", "end"))
    encoder = TextEncoder(clip, method)
    if case.get("all_classes"):
        loss = full_contrast_loss(images, encoder(prompts, ctx), labels, scale)
    else:
        negatives = torch.tensor(case["negatives"])
        assert case.get("K", len(negatives) + 1) == len(negatives) + 1, name
        ids, places = torch.unique(torch.cat([labels, negatives]), return_inverse=True)
        features = encoder(prompts.select(ids), ctx[ids] if class_specific else ctx)[places]
        margin = margin_of(case["margin"])
        if case.get("margin_per_image"):
            margins = local_correction(negatives == labels.unsqueeze(1), num_classes, margin).squeeze(1)
            assert_close(margins, torch.tensor(case["margin_per_image"]), atol=1e-6, rtol=1e-6)
        logits = local_contrast_logits(
            images,
            features[: len(labels)],
            features[len(labels) :],
            labels,
            negatives,
            scale,
            num_classes=num_classes,
            margin=margin,
        )
        if f"{name}.logits" in golden.arrays:
            recorded = tensor(golden, f"{name}.logits")
            kept = recorded > _MASKED_BELOW
            assert_close(logits[kept], recorded[kept], **tolerance(golden, "logits"))
            assert (logits[~kept] < _MASKED_BELOW).all(), name
        loss = local_contrast_loss(logits)
    recorded = tensor(golden, f"{name}.loss").reshape(())
    assert_close(loss, recorded, **tolerance(golden, "loss"), msg=lambda m: f"{name}, {method}: {m}")
    loss.backward()
    exact = tolerance(golden, "grad")
    assert ctx.grad is not None
    if class_specific:
        assert_close(ctx.grad.flatten(1).norm(dim=1), tensor(golden, f"{name}.grad_norm_per_class"), **exact)
        assert_close(ctx.grad.sum(0), tensor(golden, f"{name}.grad_sum_over_classes"), **exact)
    else:
        assert_close(ctx.grad, tensor(golden, f"{name}.grad"), **exact, msg=lambda m: f"{name}, {method}: {m}")


def csc_contexts(golden: Golden) -> Tensor:
    """Class-specific contexts by the golden's recipe: ``RandomState(11+1000).standard_normal((40,4,64)) * 0.2``."""
    recipe = golden.meta["context_csc"]
    found = re.search(r"RandomState\(([\d+ ]+)\)\.standard_normal\(\(([\d, ]+)\)\) \* ([\d.]+)", recipe)
    assert found, f"unknown recipe of the class-specific contexts: {recipe}"
    seed = sum(int(part) for part in found[1].split("+"))
    shape = tuple(int(part) for part in found[2].split(","))
    values = np.random.RandomState(seed).standard_normal(shape) * float(found[3])
    return torch.from_numpy(values.astype(np.float32))
