"""Whole zero-shot models, stage 1, test-time augmentation and names of parameters against recorded facts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import segmentation.zero_shot_head  # noqa: F401  (registers the head)
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from segmentation.proposal_classifier import ProposalClipClassifier
from segmentation.test_time_augmentation import SemanticSegmentorWithTTA
from segmentation.zero_shot_mask_former import ZeroShotMaskFormer
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


def small_clip(folder: Path, config: Mapping[str, Any]) -> str:
    path = folder / "clip.json"
    path.write_text(json.dumps(config))
    return str(path)


def recorded_model(golden: Golden, folder: Path) -> nn.Module:
    """The model of the file with its small CLIP, filled."""
    meta = golden.meta
    cfg = released_config(meta["config"])
    cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = small_clip(folder, meta["open_clip_config"])
    model = build_model(cfg)
    fill_by_factors(model, meta, seed=int(re.search(r"seed=(\d+)", meta["fill"])[1]), skip=meta["skip"])
    learner = model.clip_adapter.prompt_learner
    if hasattr(learner, "take_signals"):
        learner.take_signals(model.clip_adapter.clip)
    return model


def with_targets(record: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    labels = torch.from_numpy(labels).long()
    classes = labels.unique()[labels.unique() != 255]
    masks = labels[None] == classes[:, None, None]
    return record | {"instances": Instances(tuple(labels.shape), gt_classes=classes, gt_masks=masks)}


@pytest.mark.golden("zsseg_full_R50")
def test_whole_model(golden: Golden, tmp_path: Path) -> None:
    check_whole_model(golden, tmp_path)


@pytest.mark.golden("zsseg_full_R101c_learnable")
def test_whole_model_with_learned_prompt(golden: Golden, tmp_path: Path) -> None:
    check_whole_model(golden, tmp_path)


def check_whole_model(golden: Golden, folder: Path) -> None:
    meta, arrays, expected = golden.meta, golden.arrays, golden.meta["expected"]
    head_atol, losses_rtol = numbers(meta["tolerance"])[:2]
    agreement = float(re.search(r"agreement > ([\d.]+)", meta["tolerance"])[1])
    deviations = expected["float64_deviation_of_sem"]
    count = sum(re.fullmatch(r"image\d+", name) is not None for name in arrays)
    images = [torch.from_numpy(arrays[f"image{number}"]) for number in range(1, count + 1)]
    (trained,), (tested,) = (meta["config"]["overrides"][f"DATASETS.{use}"] for use in ("TRAIN", "TEST"))
    with registered_data_sets(meta["datasets"]):
        model = recorded_model(golden, folder).eval()
        assert len(model.state_dict()) == expected["state_dict_entries"]
        assert sum(parameter.requires_grad for parameter in model.parameters()) == expected["trainable"]
        with torch.no_grad():
            features = model.clip_adapter.class_features(meta["datasets"][tested]["stuff_classes"])
            recorded = torch.tensor(arrays["text_features"])
            assert_close(features[:, : recorded.shape[1]], recorded, rtol=0, atol=1e-4)
            assert_close(features @ features.T, torch.tensor(arrays["text_gram"]), rtol=0, atol=1e-3)
            batch = model.preprocess([{"image": images[0]}])
            outputs = model.sem_seg_head(model.backbone(batch.tensor))
            for name in ("pred_logits", "pred_masks"):
                check_sample(name, outputs[name], arrays, rtol=0, atol=head_atol)
            for key in arrays:
                case = re.fullmatch(r"sem\.(\w+)\.(\d+)", key)
                if case is None:
                    continue
                found = model(evaluation_batch(meta, case[1], images))[int(case[2])]["sem_seg"]
                assert list(found.shape) == expected[key]
                check_sample(key, found, arrays, rtol=0, atol=max(1e-3, 3 * map_deviation(deviations, case[1])))
                assert (found.argmax(0).numpy() == arrays[f"{key}.argmax"]).mean() > agreement, key

        model.train()
        batch = [
            with_targets({"image": image, "meta": {"dataset_name": trained}}, arrays[f"label{index}"])
            for index, image in enumerate(images, start=1)
        ]
        losses = model(batch)
    assert {name: float(value.detach()) for name, value in losses.items()} == pytest.approx(
        expected["losses"], rel=losses_rtol
    )
    total = sum(losses.values())
    assert float(total.detach()) == pytest.approx(expected["loss_total"], rel=losses_rtol)
    total.backward()
    parameters = dict(model.named_parameters())
    norms = {name: float(parameters[name].grad.norm()) for name in expected["grad_norms"]}
    assert norms == pytest.approx(expected["grad_norms"], rel=1e-2)


def evaluation_batch(meta: Mapping[str, Any], case: str, images: list[torch.Tensor]) -> list[dict[str, Any]]:
    """What "batch [image1, image2], dataset golden_all", "the same with golden_all_noflag" and the like stand for.

    The data set is that of the test where the sentence names none; "the same" has the images and sizes of the first.
    """
    cases = meta["inputs"]["evaluation cases"]
    own = cases[case]
    text = next(iter(cases.values())) if "the same" in own else own
    name = next((word for word in re.findall(r"\w+", own) if word in meta["datasets"]), None)
    record = {"meta": {"dataset_name": name or meta["config"]["overrides"]["DATASETS.TEST"][0]}}
    if size := re.search(r"\[(\d+), (\d+)\]", text):
        record |= {"height": int(size[1]), "width": int(size[2])}
    return [record | {"image": images[int(number) - 1]} for number in re.findall(r"image(\d+)", text)]


def map_deviation(deviations: Any, case: str) -> float:
    """How far the reference in float32 is from itself in float64, for one case or for all."""
    if not isinstance(deviations, dict):
        return float(np.max(deviations))
    own = [value for key, value in deviations.items() if case in key]
    return float(max(np.max(value) for value in own or deviations.values()))


@pytest.mark.golden("zsseg_stage1")
def test_stage_1(golden: Golden, tmp_path: Path) -> None:
    meta, arrays, expected = golden.meta, golden.arrays, golden.meta["expected"]
    logits_atol, gradient_rtol = numbers(meta["tolerance"])
    sizes = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)", meta["inputs"])]
    first, tint_seed = (int(seed) for seed in re.findall(r"RandomState\((\d+)", meta["inputs"]))
    count = len(expected["labels"])
    tint = np.random.RandomState(tint_seed).randint(0, 256, (count, 3, 1, 1))
    with registered_data_sets(meta["datasets"]):
        model = recorded_model(golden, tmp_path)
        assert isinstance(model, ProposalClipClassifier)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained == expected["trainable"]
        names = {name: list(entry.shape) for name, entry in model.state_dict().items() if "clip_model" not in name}
        assert names == dict(expected["state_dict_not_clip"])
        assert len(sizes) == sum(key.startswith("logits_") for key in arrays)
        for index, (height, width) in enumerate(sizes):
            base = np.random.RandomState(first + index).randint(0, 256, (count, 3, height, width))
            images = ((base + 3 * tint) // 4).astype(np.uint8)
            batch = []
            for image, (y0, y1, x0, x1), label in zip(
                images, expected["rectangles_y0_y1_x0_x1"], expected["labels"], strict=True
            ):
                mask = torch.zeros(1, height, width, dtype=torch.bool)
                mask[0, y0:y1, x0:x1] = True
                instances = Instances((height, width), gt_classes=torch.tensor([label]), gt_masks=mask)
                (name,) = meta["datasets"]
                batch.append({"image": torch.from_numpy(image), "instances": instances, "meta": {"dataset_name": name}})
            model.eval()
            with torch.no_grad():
                found = torch.cat([output["classification"] for output in model(batch)])
            assert_close(found, torch.tensor(arrays[f"logits_{index}"]), rtol=0, atol=logits_atol)
            model.train()
            model.zero_grad()
            with EventStorage():
                loss = model(batch)["loss_cls"]
            assert float(loss.detach()) == pytest.approx(expected[f"loss_{index}"], rel=1e-4)
            loss.backward()
            for name, parameter in model.named_parameters():
                if f"grad_{index}.{name}" in arrays:
                    recorded = torch.tensor(arrays[f"grad_{index}.{name}"])
                    error = (parameter.grad - recorded).norm() / recorded.norm()
                    assert float(error) < gradient_rtol


class Stub(nn.Module):
    """The model of ``zsseg_tta``: known functions of the image, and a record of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        image = inputs[0]["image"].float() / 255
        height, width = image.shape[-2:]
        ramp = torch.linspace(0, 1, width).expand(height, -1)
        size = inputs[0].get("height", height), inputs[0].get("width", width)
        self.calls.append([height, width, *size])
        scores = torch.stack([image[0], image[1] * ramp, ramp + 0.1 * image[2]])
        return [{"sem_seg": sem_seg_postprocess(scores, (height, width), *size)}]


@pytest.mark.golden("zsseg_tta")
def test_test_time_augmentation(golden: Golden) -> None:
    meta = golden.meta
    (atol,) = numbers(meta["tolerance"])
    height, width = (int(side) for side in re.search(r"\[(\d+), (\d+)\]", meta["inputs"]["image"]).groups())
    values = {key: value for key, value in meta["config"].items() if not isinstance(value, dict)}
    for case, expected in meta["expected"].items():
        cfg = segmentation_config()
        set_values(cfg, values | meta["config"].get(case, {}))
        model = SemanticSegmentorWithTTA(cfg, stub := Stub())
        record = {"image": torch.from_numpy(golden.arrays["image"]), "height": height, "width": width}
        found = model([record])[0]["sem_seg"]
        assert list(found.shape) == expected["shape"]
        assert stub.calls == expected["calls_h_w_outh_outw"]
        check_sample(case, found, golden.arrays, rtol=1e-5, atol=atol)


CLIP = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    "quick_gelu": True,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "R101c_single": ("coco-stuff-164k-156/zero_shot_maskformer_R101c_single_prompt_bs32_60k.yaml", {}),
    "R101c_learnable": ("coco-stuff-164k-156/zero_shot_maskformer_R101c_bs32_60k.yaml", {}),
    "R101c_pomp_tuned": ("coco-stuff-164k-156/zero_shot_maskformer_R101c_pomp_prompt_bs32_60k.yaml", {}),
    "R50_single": ("coco-stuff-164k-156/zero_shot_maskformer_R50_single_prompt_bs32_60k.yaml", {}),
    "R50_separate_region_adapter": (
        "coco-stuff-164k-156/zero_shot_maskformer_R50_single_prompt_bs32_60k.yaml",
        {
            "MODEL.CLIP_ADAPTER.SEPERATE_ADAPTER": True,
            "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_LEARNER": "learnable",
        },
    ),
    "proposal_classification_learnable": (
        "coco-stuff-164k-156/zero_shot_proposal_classification_learn_prompt_bs32_10k.yaml",
        {},
    ),
    "proposal_classification_pomp": (
        "coco-stuff-164k-156/zero_shot_proposal_classification_learn_prompt_pomp_bs32_10k.yaml",
        {},
    ),
}


def variant_config(name: str, clip: str) -> CfgNode:
    release, overrides = VARIANTS[name]
    cfg = released_config({"release": release, "overrides": overrides})
    cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = cfg.MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME = clip
    cfg.MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT = ""  # the published paths are of files that a user trains
    cfg.DATASETS.TRAIN = ()
    return cfg


def recorded_entries(name: str) -> dict[str, tuple[list[int], str]]:
    names = reference("segmentation_names")
    single = {entry[0]: (entry[1], entry[2]) for entry in names["zsseg_names_R101c_single"]["entries"]}
    if name == "R101c_single":
        return single
    variant = names["zsseg_names_variants"][name]
    clip = {key: value for key, value in single.items() if key.startswith("clip_adapter.clip_model.")}
    if isinstance(variant, list):
        return clip | {key: (shape, kind) for key, shape, kind in variant}
    entries = recorded_entries(variant["relative_to"]) | {key: (shape, kind) for key, shape, kind in variant["added"]}
    for removed in variant["removed"]:
        entries.pop(removed if isinstance(removed, str) else removed[0])
    if any(key.startswith("_region_clip_adapter.") for key in entries):
        entries |= {f"_region_{key}": value for key, value in clip.items()}
    return entries


@pytest.mark.parametrize("name", VARIANTS)
def test_names_of_released_models(name: str, tmp_path: Path) -> None:
    model = build_model(variant_config(name, small_clip(tmp_path, CLIP)))
    expected = recorded_entries(name)
    assert {key: list(entry.shape) for key, entry in model.state_dict().items()} == {
        key: shape for key, (shape, _) in expected.items()
    }
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    # The second adapter's "no object" gets no gradient; the release leaves it trainable, which DDP complains about.
    assert trained == {key for key, (_, kind) in expected.items() if kind == "param"} - (
        {"_region_clip_adapter.non_object_embedding"}
    )
    if isinstance(model, ZeroShotMaskFormer) and name == "R50_separate_region_adapter":
        assert model._region_clip_adapter.clip_model is model.clip_adapter.clip_model  # in memory once
