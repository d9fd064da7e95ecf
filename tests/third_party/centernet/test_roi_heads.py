"""ROI heads: scores that include the proposal's, and the federated loss."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from centernet.modeling.roi_heads.custom_fast_rcnn import CustomFastRCNNOutputLayers
from centernet.modeling.roi_heads.fed_loss import get_fed_loss_inds, load_class_freq
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.golden_recipes import write_category_counts
from tests.third_party.centernet.small_models import objects, two_stage_config

COUNTS = [10, 0, 400, 25]


def built_heads(cfg: CfgNode) -> nn.Module:
    shapes = {"p3": ShapeSpec(channels=8, stride=8), "p4": ShapeSpec(channels=8, stride=16)}
    torch.manual_seed(0)
    return build_roi_heads(cfg, shapes).eval()


def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"p3": torch.randn(1, 8, 8, 12, generator=generator), "p4": torch.randn(1, 8, 4, 6, generator=generator)}


def proposals(scores: list[float]) -> list[Instances]:
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [40.0, 10.0, 80.0, 50.0], [10.0, 30.0, 60.0, 60.0]])
    return [Instances((64, 96), proposal_boxes=Boxes(boxes), objectness_logits=torch.tensor(scores))]


@pytest.mark.parametrize("heads", ["CustomROIHeads", "CustomCascadeROIHeads"])
def test_scores_are_roots_of_products_with_the_proposals(heads: str) -> None:
    cfg = two_stage_config(num_classes=2, heads=heads)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    multiplied, _ = built_heads(cfg)(None, features(), proposals([0.25, 0.25, 0.25]))
    by_scores = proposals([9.0, 9.0, 9.0])
    by_scores[0].scores = torch.tensor([0.25, 0.25, 0.25])
    by_field, _ = built_heads(cfg)(None, features(), by_scores)
    cfg.MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE = False
    plain, _ = built_heads(cfg)(None, features(), proposals([0.25, 0.25, 0.25]))
    assert len(plain[0]) == 6
    assert_close(multiplied[0].scores, (0.25 * plain[0].scores).sqrt())
    assert_close(multiplied[0].pred_boxes.tensor, plain[0].pred_boxes.tensor)
    assert torch.equal(by_field[0].scores, multiplied[0].scores)


def test_cascade_scores_are_means_over_stages() -> None:
    cfg = two_stage_config(num_classes=2)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    heads = built_heads(cfg)
    for predictor, bias in zip(heads.box_predictor, ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0]), strict=True):
        nn.init.zeros_(predictor.cls_score.weight)
        predictor.cls_score.bias.data = torch.tensor(bias)
    (found,), _ = heads(None, features(), proposals([1.0, 1.0, 1.0]))
    probs = [torch.tensor(bias).softmax(dim=0) for bias in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0])]
    expected = torch.stack(probs).mean(dim=0)[:2].sqrt()
    assert_close(found.scores, expected.sort(descending=True).values.repeat_interleave(3))


def test_no_proposals_are_no_detections() -> None:
    none = [each[:0] for each in proposals([1.0] * 3)]
    for heads in ("CustomROIHeads", "CustomCascadeROIHeads"):
        (found,), _ = built_heads(two_stage_config(2, heads))(None, features(), none)
        assert len(found) == 0


def sigmoid_predictor(freq_weight: Tensor | None, num_cats: int = 3) -> CustomFastRCNNOutputLayers:
    return CustomFastRCNNOutputLayers(
        8,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=4,
        cls_agnostic_bbox_reg=True,
        use_sigmoid_ce=True,
        fed_loss_num_cat=num_cats,
        freq_weight=freq_weight,
        prior_prob=0.05,
    )


def test_independent_classes_start_with_their_prior() -> None:
    scores, _ = sigmoid_predictor(None)(torch.zeros(2, 8))
    assert_close(scores.sigmoid(), torch.full((2, 5), 0.05))


def test_federated_loss_is_of_the_chosen_classes() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 4, 2, 4, 4, 2])
    weights = torch.tensor([1.0, 0.0, 1.0, 3.0])
    torch.manual_seed(4)
    chosen = get_fed_loss_inds(labels, 3, 4, weights).tolist()
    assert chosen[:2] == [2, 4]
    assert chosen[2] in (0, 3)
    torch.manual_seed(4)
    loss = sigmoid_predictor(weights).sigmoid_cross_entropy_loss(logits, labels)
    target = F.one_hot(labels, 5).float()
    every = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=0) / 6
    assert_close(loss, every[2] + every[chosen[2]])
    assert_close(sigmoid_predictor(None).sigmoid_cross_entropy_loss(logits, labels), every[:4].sum())


def test_losses_of_no_region_are_zero() -> None:
    for weights in (None, torch.ones(4)):
        scores = torch.zeros(0, 5, requires_grad=True)
        loss = sigmoid_predictor(weights).sigmoid_cross_entropy_loss(scores, torch.zeros(0, dtype=torch.int64))
        loss.backward()
        assert loss == 0


def test_classes_are_drawn_by_weight_and_without_those_present() -> None:
    labels = torch.tensor([5, 1, 1])
    weights = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    for seed in range(5):
        torch.manual_seed(seed)
        assert set(get_fed_loss_inds(labels, 4, 5, weights).tolist()) == {1, 5, 3, 4}
    assert get_fed_loss_inds(labels, 2, 5, weights).tolist() == [1, 5]
    assert get_fed_loss_inds(labels, 1, 5).tolist() == [1, 5]


def test_fewer_classes_than_asked_for_are_all_taken() -> None:
    assert sorted(get_fed_loss_inds(torch.tensor([0]), 50, 3).tolist()) == [0, 1, 2]
    assert get_fed_loss_inds(torch.tensor([0]), 50, 3, torch.zeros(3)).tolist() == [0]


def test_category_counts_are_sorted_by_id(tmp_path: Path) -> None:
    file = write_category_counts(tmp_path / "counts.json", COUNTS)
    assert_close(load_class_freq(str(file), 0.5), torch.tensor(COUNTS).float().sqrt())
    assert_close(load_class_freq(str(file), None), torch.tensor(COUNTS).float())


@pytest.mark.parametrize("content", ["no json", "[1, 2]", '[{"id": 1}]', '[{"id": 1, "image_count": "many"}]', "7"])
def test_a_malformed_category_file_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "counts.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"counts.json \(MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH\): expected a json list"):
        load_class_freq(str(file))


def test_a_missing_category_file_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.json not found \(MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH\)"):
        load_class_freq("nowhere.json")


def federated_config(file: Path, num_classes: int) -> CfgNode:
    cfg = two_stage_config(num_classes)
    head = cfg.MODEL.ROI_BOX_HEAD
    head.USE_SIGMOID_CE = head.USE_FED_LOSS = True
    head.CAT_FREQ_PATH = str(file)
    head.FED_LOSS_NUM_CAT = 2
    return cfg


def test_federated_heads_train_and_keep_their_weights_in_the_state_dict(tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    file.write_text(json.dumps([{"id": i, "image_count": i * i} for i in range(1, 5)]))
    heads = built_heads(federated_config(file, 4)).train()
    for stage in range(3):
        assert_close(heads.state_dict()[f"box_predictor.{stage}.freq_weight"], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with EventStorage():
        _, losses = heads(None, features(), proposals([0.5] * 3), [objects([[4, 4, 30, 38]], [2])])
    assert set(losses) == {f"loss_{kind}_stage{stage}" for kind in ("cls", "box_reg") for stage in range(3)}
    sum(losses.values()).backward()
    assert heads.box_predictor[0].cls_score.weight.grad[2].any()


def test_a_category_file_of_another_data_set_is_an_error(tmp_path: Path) -> None:
    file = write_category_counts(tmp_path / "counts.json", COUNTS)
    with pytest.raises(ValueError, match="CAT_FREQ_PATH lists 4 categories, but MODEL.ROI_HEADS.NUM_CLASSES is 7"):
        built_heads(federated_config(file, 7))
