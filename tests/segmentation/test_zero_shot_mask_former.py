"""The zero-shot segmenter as a whole."""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import third_party  # noqa: F401  (makes detectron2 importable)
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import Instances
from prompt_pretrain.errors import InputError
from segmentation.zero_shot_mask_former import ZeroShotMaskFormer
from tests.segmentation.tiny_models import noise_image, tiny_config
from tests.segmentation_recipes import registered_data_sets

NAMES = ["sand", "red star", "blue disc"]
DATA = {"tiny_seen": {"stuff_classes": NAMES, "trainable_flag": [1, 1, 1]}}
NODE = "MODEL.CLIP_ADAPTER"
OWN_SIZE = (f"{NODE}.REGION_SIZE", 0)


def segmenter(folder: Path, *overrides: Any) -> ZeroShotMaskFormer:
    torch.manual_seed(0)
    model = build_model(tiny_config(folder, *OWN_SIZE, *overrides))
    assert isinstance(model, ZeroShotMaskFormer)
    model.set_classes(NAMES, [1, 1, 0])
    return model.eval()


def maps(model: nn.Module, *images: Tensor, **fields: Any) -> list[Tensor]:
    with torch.no_grad():
        return [output["sem_seg"] for output in model([{"image": image} | fields for image in images])]


def training_inputs() -> list[dict[str, Any]]:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :30], masks[1, 30:] = True, True
    instances = Instances((64, 64), gt_classes=torch.tensor([0, 2]), gt_masks=masks)
    empty = Instances((64, 64), gt_classes=torch.zeros(0, dtype=torch.long), gt_masks=torch.zeros(0, 64, 64))
    meta = {"dataset_name": "tiny_seen"}
    return [
        {"image": noise_image(64, 64, seed), "instances": found, "meta": meta}
        for seed, found in enumerate((instances, empty))
    ]


def test_permuted_classes_permute_scores(tmp_path: Path) -> None:
    model = segmenter(tmp_path)
    (found,) = maps(model, noise_image(50, 64), height=20, width=30)
    assert found.shape == (3, 20, 30)
    model.set_classes(NAMES[::-1], [0, 1, 1])
    (reversed_,) = maps(model, noise_image(50, 64), height=20, width=30)
    assert_close(reversed_.flip(0), found, rtol=1e-3, atol=1e-5)


def test_images_of_a_batch_are_as_alone(tmp_path: Path) -> None:
    model = segmenter(tmp_path)
    images = [noise_image(64, 60), noise_image(60, 64, 1), noise_image(64, 64, 2)]
    together = maps(model, *images)
    for image, found in zip(images, together, strict=True):
        assert_close(maps(model, image)[0], found, rtol=1e-3, atol=1e-5)


def test_without_a_seen_class_every_class_is_unseen(tmp_path: Path) -> None:
    model = segmenter(tmp_path, f"{NODE}.CLIP_ENSEMBLE_WEIGHT", 0.7)
    model.set_classes(NAMES, [0, 0, 0])
    (found,) = maps(model, noise_image(64, 64))
    model.set_classes(NAMES)
    assert torch.equal(maps(model, noise_image(64, 64))[0], found)
    assert found.isfinite().all()
    model.clip_ensemble_weight = 1 - 0.7
    model.set_classes(NAMES, [1, 1, 1])
    assert_close(maps(model, noise_image(64, 64))[0], found)


def test_bgr_images_are_turned_for_clip_alone(tmp_path: Path) -> None:
    rgb = segmenter(tmp_path)
    bgr = segmenter(tmp_path, "INPUT.FORMAT", "BGR")
    bgr.load_state_dict(rgb.state_dict())
    seen: list[Tensor] = []
    for model in (rgb, bgr):
        model.clip_ensemble_weight = 0.0
        classify = model.clip_adapter.classify
        model.clip_adapter.classify = lambda images, *rest, classify=classify: (  # type: ignore[method-assign]
            seen.append(images[0]),
            classify(images, *rest),
        )[1]
    image = noise_image(64, 64)
    maps(rgb, image)
    maps(bgr, image.flip(0))
    assert torch.equal(seen[0], seen[1])


def test_masks_all_empty(tmp_path: Path) -> None:
    model = segmenter(tmp_path, f"{NODE}.MASK_THR", 1.0)  # no probability is above it
    (found,) = maps(model, noise_image(64, 64))
    assert float(found.sum()) > 0  # queries decide
    model.clip_ensemble_weight = 0.0
    assert float(maps(model, noise_image(64, 64))[0].abs().max()) == 0  # CLIP alone, which has seen nothing


def test_training_reaches_every_trained_parameter(tmp_path: Path) -> None:
    model = segmenter(tmp_path).train()
    model.set_classes(None)
    with registered_data_sets(DATA):
        losses = model(training_inputs())
        sum(losses.values()).backward()
        trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert [name for name, gradient in trained.items() if gradient is None] == []
        assert "clip_adapter.non_object_embedding" in trained
        model.criterion.num_classes = 5
        with pytest.raises(InputError, match="NUM_CLASSES is 5, but the training data have 3 classes"):
            model(training_inputs())


def test_copies_give_the_same_maps_and_live_apart(tmp_path: Path) -> None:
    model = segmenter(tmp_path)
    other = copy.deepcopy(model)
    image = noise_image(64, 64)
    (before,) = maps(model, image)
    assert torch.equal(maps(other, image)[0], before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    other.load_state_dict(other.state_dict())
    assert not torch.allclose(maps(other, image)[0], before)
    assert torch.equal(maps(model, image)[0], before)


def test_ddp_needs_no_search_for_unused_parameters(tmp_path: Path) -> None:
    model = segmenter(
        tmp_path,
        f"{NODE}.SEPERATE_ADAPTER",
        True,
        f"{NODE}.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME",
        "shapeworld-tiny",
    ).train()
    model.set_classes(None)
    file = tmp_path / "rendezvous"
    torch.distributed.init_process_group("gloo", init_method=f"file://{os.fspath(file)}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        with registered_data_sets(DATA):
            for _ in range(2):  # the second step complains about parameters that the first did not reach
                sum(wrapped(training_inputs()).values()).backward()
    finally:
        torch.distributed.destroy_process_group()


def checkpointed(model: nn.Module, content: dict[str, Any], folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What loading reports."""
    torch.save(content, folder / "model_final.pth")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(folder / "model_final.pth"))
    return caplog.text


SEPARATE = (
    f"{NODE}.SEPERATE_ADAPTER",
    True,
    f"{NODE}.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME",
    "shapeworld-tiny",
    f"{NODE}.REGION_CLIP_ADAPTER.PROMPT_LEARNER",
    "learnable",
    f"{NODE}.REGION_CLIP_ADAPTER.PROMPT_DIM",
    64,
)


def test_checkpoints_with_two_adapters_load_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = segmenter(tmp_path, *SEPARATE)
    state = model.state_dict()
    prefixes = {name.split(".clip_model.")[0] for name in state if ".clip_model." in name}
    assert prefixes == {"clip_adapter", "_region_clip_adapter"}  # as published, though in memory once
    assert model._region_clip_adapter.clip_model is model.clip_adapter.clip_model
    changed = {name: value.clone() for name, value in state.items()}
    for name in changed:
        if name.endswith("clip_model.text_projection") or "prompt_learner.prefix" in name:
            changed[name] = changed[name] * -2
    before = model.region_clip_adapter.text_features(NAMES).detach().clone()
    # Published files know no versions of modules, and are whole.
    assert checkpointed(model, {"model": dict(changed), "iteration": 9}, tmp_path, caplog) == ""
    after = model.region_clip_adapter.text_features(NAMES)
    assert not torch.allclose(after, before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, changed[name]), name


def test_a_checkpoint_with_a_single_adapter_names_what_a_second_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    single = segmenter(tmp_path).state_dict()
    text = checkpointed(segmenter(tmp_path, *SEPARATE), {"model": dict(single)}, tmp_path, caplog)
    assert "_region_clip_adapter" in text
    assert checkpointed(segmenter(tmp_path), {"model": dict(single)}, tmp_path, caplog) == ""


def test_errors_of_configs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="PANOPTIC_ON is True, but ZeroShotMaskFormer has no panoptic output"):
        segmenter(tmp_path, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True)
    with pytest.raises(InputError, match="EMBEDDING_DIM is 512, but features of .* have 64; set it to that"):
        segmenter(tmp_path, "MODEL.SEM_SEG_HEAD.EMBEDDING_DIM", 512)
