"""Whole small models: training, detection, images without objects."""

from typing import Any

import pytest
import torch

from centernet.modeling.backbone.left_out import LEFT_OUT
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tests.third_party.centernet.small_models import objects, one_stage_config, two_stage_config


def inputs() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 96), (50, 70)]
    batch = [{"image": torch.randint(0, 256, (3, *size), generator=generator).float()} for size in sizes]
    batch[0]["instances"] = objects([[10, 10, 50, 40], [40, 20, 90, 60]], [1, 2], sizes[0])
    batch[1]["instances"] = objects([], [], sizes[1])
    return batch


def one_stage() -> CfgNode:
    cfg = one_stage_config(3)
    cfg.MODEL.CENTERNET.MORE_POS = True
    return cfg


@pytest.mark.parametrize(
    "cfg", [one_stage(), two_stage_config(3), two_stage_config(3, "CustomROIHeads")], ids=["one", "cascade", "two"]
)
def test_models_train_and_detect(cfg: CfgNode) -> None:
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        losses = model(inputs())
        only_empty = model(inputs()[1:])
    assert set(losses) == set(only_empty)
    (sum(losses.values()) + sum(only_empty.values())).backward()
    without = {name for name, each in model.named_parameters() if each.requires_grad and each.grad is None}
    assert without == {"backbone.fpn_output5.weight", "backbone.fpn_output5.bias"}  # of the level that no head reads
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)

    batch = [{"image": each["image"], "height": 128} for each in inputs()]
    with torch.no_grad():
        together = model.eval()(batch)
        alone = model([batch[0]])
    found = together[0]["instances"]
    assert found.image_size == (128, 96)
    assert len(found) > 0
    torch.testing.assert_close(found.scores, alone[0]["instances"].scores, rtol=1e-4, atol=1e-5)
    assert together[1]["instances"].image_size == (128, 70)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (33, 2)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    model = build_model(two_stage_config(1)).eval()
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, *size)}])
    boxes = found["instances"].pred_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([*size[::-1], *size[::-1]])).all()


def test_proposals_have_scores_in_evaluation_only() -> None:
    torch.manual_seed(0)
    model = build_model(two_stage_config(3))
    images = model.preprocess_image(inputs())
    features = model.backbone(images.tensor)
    targets = [each["instances"] for each in inputs()]
    training, _ = model.proposal_generator(images, features, targets)
    assert set(training[0].get_fields()) == {"proposal_boxes", "objectness_logits"}
    assert not training[0].objectness_logits.requires_grad
    evaluation, _ = model.eval().proposal_generator(images, features)
    assert set(evaluation[0].get_fields()) == {"proposal_boxes", "objectness_logits", "scores", "pred_classes"}
    assert torch.equal(evaluation[0].scores, evaluation[0].objectness_logits)
    assert evaluation[0].scores.min() >= 0
    assert evaluation[0].scores.max() <= 1


def test_detections_with_classes_can_be_proposals() -> None:
    cfg = two_stage_config(3)
    cfg.MODEL.CENTERNET.ONLY_PROPOSAL = False
    cfg.MODEL.CENTERNET.AS_PROPOSAL = True
    model = build_model(cfg)
    with EventStorage():
        losses = model(inputs())
    assert {"loss_centernet_pos", "loss_centernet_agn_pos", "loss_cls_stage2"} <= set(losses)


def test_the_detector_keeps_pixel_statistics_in_its_state_dict() -> None:
    state = build_model(one_stage_config(3)).state_dict()
    assert [list(state)[:2], state["pixel_mean"].shape] == [["pixel_mean", "pixel_std"], (3, 1, 1)]


def test_a_detector_of_proposals_is_an_error() -> None:
    cfg = one_stage_config(3)
    cfg.MODEL.CENTERNET.AS_PROPOSAL = True
    with pytest.raises(ValueError, match="CenterNetDetector returns detections, not proposals"):
        build_model(cfg)


def test_pyramid_levels_and_their_strides() -> None:
    cfg = one_stage_config(3)
    cfg.MODEL.BACKBONE.NAME = "build_p67_resnet_fpn_backbone"
    backbone = build_model(cfg).backbone
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {
        "p3": 8,
        "p4": 16,
        "p5": 32,
        "p6": 64,
        "p7": 128,
    }
    assert backbone.size_divisibility == 32
    maps = backbone(torch.zeros(1, 3, 96, 160))
    assert [tuple(each.shape[-2:]) for each in maps.values()] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_backbones_left_out_say_so(name: str) -> None:
    cfg = one_stage_config(3)
    cfg.MODEL.BACKBONE.NAME = name
    with pytest.raises(NotImplementedError, match=rf"{name} \(MODEL.BACKBONE.NAME\): the DLA, Res2Net and BiFPN"):
        build_model(cfg)
