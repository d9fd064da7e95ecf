"""The zero-shot head, its pixel decoders and position encodings against recorded numbers."""

import re

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import segmentation.zero_shot_head  # noqa: F401  (registers the head)
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from mask_former.modeling.transformer.position_encoding import PositionEmbeddingSine
from tests.golden_files import Golden
from tests.segmentation_recipes import check_sample, fill_by_factors, released_config


@pytest.mark.golden("zsseg_head")
@torch.no_grad()
def test_head(golden: Golden) -> None:
    check_variants(golden)
    check_positions(golden)


def check_variants(golden: Golden) -> None:
    meta, arrays = golden.meta, golden.arrays
    masks_atol, logits_atol = (float(x) for x in re.findall(r"\d[\d.]*(?:e-?\d+)?", meta["tolerance"]))
    for name, variant in meta["variants"].items():
        recipe = meta["config"] | {"overrides": variant["overrides"]}
        shapes = {
            key: ShapeSpec(channels=channels, stride=stride) for key, (channels, stride) in meta["input_shapes"].items()
        }
        head = build_sem_seg_head(released_config(recipe), shapes).eval()
        fill_by_factors(head, meta, seed=variant["fill_seed"])
        features = {
            key: recorded_feature(variant["feature_seeds"][key], variant["batch"], shape, variant["image_size"])
            for key, shape in shapes.items()
        }
        mask_features, encoded = head.pixel_decoder.forward_features(features)
        outputs = head(features)
        found = {
            "mask_features": mask_features,
            "pred_logits": outputs["pred_logits"],
            "pred_masks": outputs["pred_masks"],
        }
        levels = outputs.get("aux_outputs", [])
        expected = variant["output_shapes"]
        assert {key: list(value.shape) for key, value in found.items()} | {"aux": len(levels)} == expected
        if encoded is not None:
            found["encoder_features"] = encoded
        for index, level in enumerate(levels):
            found |= {f"aux{index}.logits": level["pred_logits"], f"aux{index}.masks": level["pred_masks"]}
        recorded = {key.removeprefix(f"{name}.").removesuffix(".stats") for key in arrays if key.startswith(f"{name}.")}
        assert recorded and recorded <= set(found), name
        for key in recorded:
            atol = logits_atol if "logits" in key else masks_atol
            check_sample(f"{name}.{key}", found[key], arrays, rtol=1e-5, atol=atol)


def check_positions(golden: Golden) -> None:
    for name in (name for name in golden.arrays if name.startswith("pos_")):
        normalize = {"norm": True, "raw": False}[name.split("_")[1]]
        expected = torch.from_numpy(golden.arrays[name])
        features = expected.shape[1] // 2
        found = PositionEmbeddingSine(features, normalize=normalize)(torch.zeros(1, 1, *expected.shape[2:]))
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


def recorded_feature(seed: int, batch: int, shape: ShapeSpec, image_size: list[int]) -> torch.Tensor:
    size = [side // shape.stride for side in image_size]
    x = np.random.RandomState(seed).standard_normal((batch, shape.channels, *size))
    return torch.from_numpy(np.maximum(x, 0).astype(np.float32))
