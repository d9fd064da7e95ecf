"""Prompt learners, image tower and crops on a small filled CLIP against recorded numbers."""

import re
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.prompt_tokens import tokenize_texts
from prompt_pretrain.templates import load_templates
from segmentation.clip_adapter import MaskFormerClipAdapter
from segmentation.clip_vision import encode_images
from segmentation.mask_crops import crop_boxes, expand_boxes
from segmentation.prompt_learners import PompPrompt, PredefinedPrompts, TwoSidedPrompt
from segmentation.zero_shot_inference import semantic_map
from tests.golden.fill import fill, value
from tests.golden_files import Golden
from tests.segmentation_recipes import check_sample, fill_by_factors


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d[\d.]*(?:e-?\d+)?", text)]


def recorded_clip(golden: Golden) -> Clip:
    config = golden.meta["open_clip_config"]
    return clip_from_config(config, clip_id="golden")


def seed_of(text: str) -> int:
    return int(re.search(r"seed=(\d+)", text)[1])


@pytest.mark.golden("zsseg_clip_small")
def test_text_and_image_features(golden: Golden) -> None:
    meta, arrays = golden.meta, golden.arrays
    clip = recorded_clip(golden)
    seed = seed_of(meta["fill"])
    fill(clip.model, seed=seed)
    names = meta["inputs"]["names"]
    normalised, raw = numbers(meta["tolerance"])

    single = load_templates("single")
    tokens = clip.tokenizer(list(names))
    assert np.array_equal(tokens[:, : arrays["tokens_names"].shape[1]], arrays["tokens_names"])
    texts = [single[0].format(name) for name in names]
    tokens = clip.tokenizer(texts)
    assert np.array_equal(tokens[:, : arrays["tokens_single"].shape[1]], arrays["tokens_single"])
    assert [len(clip.tokenizer.encode(name)) for name in names] == meta["name_token_counts"]
    with torch.no_grad():
        found = clip.model.encode_text(tokens)
        assert_close(found[:, : arrays["text_raw"].shape[1]], torch.tensor(arrays["text_raw"]), rtol=0, atol=raw)
    for name, templates in (
        ("single", single),
        ("imagenet", load_templates("imagenet80")),
        ("vild", load_templates("vild")),
    ):
        check_features(
            PredefinedPrompts(templates).encode(clip, names), arrays, f"text_{name}", f"gram_{name}", normalised
        )

    recipe = meta["inputs"]["image_raw_i"]
    first, count = map(int, re.search(r"RandomState\((\d+)\+i\)\.standard_normal\(\((\d+),", recipe).groups())
    sizes = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)", recipe.split("=")[-1])]
    for index, size in enumerate(sizes):
        generator = np.random.RandomState(first + index)
        images = torch.from_numpy(generator.standard_normal((count, 3, *size)).astype(np.float32))
        with torch.no_grad():
            found = encode_images(clip, images)
        expected = torch.tensor(arrays[f"image_raw_{index}"])
        assert_close(found[:, : expected.shape[1]], expected, rtol=0, atol=raw)

    for key, recipe in meta["prompt_learners"].items():
        index = key.rpartition("_")[2]
        learner = TwoSidedPrompt(clip.text_width, tuple(recipe["PROMPT_SHAPE"]))
        fill(learner, seed=seed)
        learner.take_signals(clip)
        shapes = {name: list(entry.shape) for name, entry in learner.state_dict().items()}
        assert shapes == recipe["state_dict"]
        assert {name: list(entry.shape) for name, entry in learner.named_parameters()} == recipe["parameters"]
        check_features(learner.encode(clip, names), arrays, f"learn_{index}", f"learn_gram_{index}", normalised)
    signals = torch.cat([learner.start_signal, learner.dot_signal, learner.end_signal, learner.pad_signal])
    assert_close(signals, torch.tensor(arrays["signals"]), rtol=0, atol=normalised)

    count = next(iter(meta["prompt_learners"].values()))["PROMPT_SHAPE"][0]
    pomp = PompPrompt(clip.text_width, count)
    pomp.ctx.data.copy_(value("ctx", pomp.ctx.shape, seed))
    check_features(pomp.encode(clip, names), arrays, "pomp", "pomp_gram", normalised)


def check_features(found: Tensor, arrays: Any, name: str, gram: str, atol: float) -> None:
    found = found.detach()
    expected = torch.tensor(arrays[name])
    assert_close(found[:, : expected.shape[1]], expected, rtol=0, atol=atol)
    assert_close(found @ found.T, torch.tensor(arrays[gram]), rtol=0, atol=5 * atol)


@pytest.mark.golden("zsseg_crops")
@torch.no_grad()
def test_crops_and_ensemble(golden: Golden) -> None:
    meta, arrays = golden.meta, golden.arrays
    tolerance = numbers(meta["tolerance"])
    sums_rtol, regions_atol, logits_atol, maps_atol = tolerance
    template = re.search(r"\['(.*)'\]", meta["prompt"])[1]
    image, names = torch.tensor(arrays["image"]).float(), meta["class_names"]
    masks = (torch.tensor(arrays["mask_logits_x64"]).float() / 64).sigmoid()
    clip = recorded_clip(golden)
    base = MaskFormerClipAdapter(clip, PredefinedPrompts([template]))
    fill_by_factors(
        base, meta, seed=seed_of(meta["fill"]), skip=re.findall(r"'([^']+)'", meta["fill"].split("seed")[0])
    )

    def adapter(**arguments: Any) -> MaskFormerClipAdapter:
        made = MaskFormerClipAdapter(clip, base.prompt_learner, **arguments)
        made.non_object_embedding.data.copy_(base.non_object_embedding)
        return made

    for case, expected in meta["expected"].items():
        if case == "expand_box":
            for arguments, box in expected:
                limit = tuple(side - 1 for side in arguments[5:]) or None  # recorded for boxes whose ends are pixels
                assert expand_boxes(torch.tensor([arguments[:4]]), arguments[4], limit).tolist() == [box]
            continue
        if case == "unresized":
            like = meta["expected"][expected["like"]]["arguments"]
            logits, valid = adapter(**like, region_resized=False)(image, names, masks[expected["mask_indices"]])
            assert valid.all()
            assert_close(logits, torch.tensor(arrays[f"{case}.clip_logits"]), rtol=0, atol=logits_atol)
            continue
        found = adapter(**expected["arguments"])
        valid = masks.gt(found.mask_thr).flatten(1).any(1)
        assert valid.int().tolist() == expected["valid"]
        tight = crop_boxes(masks[valid] > found.mask_thr)
        assert tight.tolist() == [[int(side) for side in box] for box in expected["tight_boxes_xyxy"]]
        found.region_resized = False
        crops, _ = found.regions(image, masks)
        assert [list(crop.shape) for crop in crops] == expected["crop_shapes"]
        pixels = [crop.double() * found.pixel_std[0].double() + found.pixel_mean[0].double() for crop in crops]
        assert [float(crop.sum()) for crop in pixels] == pytest.approx(expected["crop_sums"], rel=sums_rtol)
        found.region_resized = True
        regions, _ = found.regions(image, masks)
        for index, region in enumerate(regions):
            sample = {"x": arrays[f"{case}.regions"][index], "x.stats": arrays[f"{case}.regions.stats"][index]}
            check_sample("x", region, sample, rtol=1e-5, atol=regions_atol)
        logits, _ = found(image, names, masks)
        assert_close(logits, torch.tensor(arrays[f"{case}.clip_logits"]), rtol=0, atol=logits_atol)

    first = adapter(**next(iter(meta["expected"].values()))["arguments"])
    flag = torch.tensor(next(entry for key, entry in meta.items() if key.startswith("trainable_flag"))).float()
    queries = torch.tensor(arrays["query_logits"])
    for key in arrays:
        weight = re.fullmatch(r"sem\.([\d.]+)\.(flag|noflag)", key)
        if weight:
            logits, valid = first(image, names, masks)
            seen = flag if weight[2] == "flag" else torch.zeros_like(flag)
            found = semantic_map(queries, masks, logits, valid, seen, float(weight[1]))
        elif key == "sem.query_only":
            found = semantic_map(queries, masks, None, None, flag, 1.0)
        elif key == "sem.no_valid":
            lowered = int(re.search(r"minus (\d+)", meta["keys"][key])[1])
            lower = (torch.tensor(arrays["mask_logits_x64"]).float() / 64 - lowered).sigmoid()
            logits, valid = first(image, names, lower)
            assert logits is None
            seen = flag
            found = semantic_map(queries, lower, logits, valid, seen, 0.8)
        else:
            continue
        check_sample(key, found, arrays, rtol=1e-5, atol=maps_atol)
        if f"{key}.argmax" in arrays:
            assert (found.argmax(0).numpy() == arrays[f"{key}.argmax"]).mean() > 0.999


def test_the_tokenizer_is_that_of_clip() -> None:
    clip = clip_from_config(
        {
            "embed_dim": 8,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
        }
    )
    assert isinstance(clip.tokenizer, open_clip.SimpleTokenizer)
    assert tokenize_texts(["cat"], clip.tokenizer).lengths.tolist() == [3]
