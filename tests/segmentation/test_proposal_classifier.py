"""Stage 1: learning a prompt on masks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import third_party  # noqa: F401  (makes detectron2 importable)
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from prompt_pretrain.errors import InputError
from segmentation.proposal_classifier import ProposalClipClassifier
from tests.segmentation.tiny_models import noise_image, tiny_config

NAMES = ["sand", "red star", "blue disc"]


def classifier(folder: Path, *overrides: Any) -> ProposalClipClassifier:
    model = build_model(tiny_config(folder, *overrides, stage=1))
    assert isinstance(model, ProposalClipClassifier)
    model.vocabulary.set(NAMES)
    return model


def inputs(height: int = 40, width: int = 48) -> list[dict[str, Any]]:
    found = []
    for seed in range(2):
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, 5 : 20 + seed, 7:30] = True
        instances = Instances((height, width), gt_classes=torch.tensor([seed, 2]), gt_masks=masks)
        found.append({"image": noise_image(height, width, seed), "instances": instances, "file_name": f"{seed}.jpg"})
    return found


def test_outside_of_the_first_mask_stands_clips_raw_mean(tmp_path: Path) -> None:
    model = classifier(tmp_path).eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (model.clip_adapter.clip.mean, model.clip_adapter.clip.std))
    images = []
    for x in inputs():
        image = (x["image"] / 255 - mean) / std
        images.append(torch.where(x["instances"].gt_masks[0], image, mean))
    features = F.normalize(model.clip_adapter.encode_image(torch.stack(images)), dim=1)
    expected = 100 * features @ model.clip_adapter.text_features(NAMES).T
    with torch.no_grad():
        found = model(inputs())
    assert [output["classification"].shape for output in found] == [(1, 3)] * 2
    assert_close(torch.cat([output["classification"] for output in found]), expected, rtol=1e-4, atol=1e-3)
    bgr = classifier(tmp_path, "INPUT.FORMAT", "BGR").eval()
    bgr.load_state_dict(model.state_dict())
    with torch.no_grad():
        turned = bgr([x | {"image": x["image"].flip(0)} for x in inputs()])
    assert_close(turned[1]["classification"], found[1]["classification"])


def test_only_the_prompt_learns_and_the_first_iteration_is_pictured(tmp_path: Path) -> None:
    model = classifier(tmp_path).train()
    with EventStorage() as storage:
        loss = model(inputs())["loss_cls"]
        assert 0 <= storage.latest()["train_acc"][0] <= 100
        assert len(storage._vis_data) == 1
        storage.iter = 1
        model(inputs())
        assert len(storage._vis_data) == 1
    loss.backward()
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient == ["clip_adapter.prompt_learner.prefix_prompt"]
    assert not {name for name in model.state_dict() if name.startswith("pixel")}


def test_errors(tmp_path: Path) -> None:
    model = classifier(tmp_path).eval()
    with pytest.raises(
        InputError, match=r"sizes \(height, width\) \[\(32, 32\), \(40, 48\)\]; set INPUT.MIN_SIZE_TRAIN"
    ):
        model([inputs()[0], inputs(32, 32)[0]])
    nothing = inputs()[0]
    nothing["instances"] = nothing["instances"][:0]
    with pytest.raises(InputError, match="0.jpg has no mask; evaluate with ORACLE True"):
        model([nothing])
    with pytest.raises(InputError, match="0.jpg has no mask"):
        model([{key: value for key, value in inputs()[0].items() if key != "instances"}])
