"""The box predictor: detections from scores and boxes, losses, box heads."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import nms

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_box_head
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import (
    _log_classification_stats,
    fast_rcnn_inference,
    fast_rcnn_inference_single_image,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

SIZE = (60, 80)
K = 4


def random_boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60 - 5
    return torch.cat((corner, corner + 2 + torch.rand(count, 2, generator=generator) * 30), dim=1)


def random_probs(count: int, seed: int = 0) -> Tensor:
    return (2 * torch.randn(count, K + 1, generator=torch.Generator().manual_seed(seed))).softmax(dim=1)


def predictor(**options: Any) -> FastRCNNOutputLayers:
    torch.manual_seed(0)
    layers = FastRCNNOutputLayers(
        6, box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), num_classes=K, **options
    )
    for layer in (layers.cls_score, layers.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return layers


def regions(*counts: int, background: bool = False) -> list[Instances]:
    found = []
    for i, count in enumerate(counts):
        classes = torch.arange(count) % (K + 1)
        found.append(
            Instances(
                SIZE,
                proposal_boxes=Boxes(random_boxes(count, seed=i)),
                gt_classes=torch.full_like(classes, K) if background else classes,
                gt_boxes=Boxes(random_boxes(count, seed=10 + i)),
            )
        )
    return found


def slow_detections(boxes: Tensor, scores: Tensor, thresh: float, iou: float) -> list[tuple[float, int, int, Tensor]]:
    """(score, class, row, box) of every detection of one image, by falling score."""
    found = []
    for k in range(K):
        rows = [row for row in range(len(scores)) if scores[row, k] > thresh]
        if not rows:
            continue
        of_class = boxes[rows] if boxes.shape[1] == 4 else boxes[rows, 4 * k : 4 * k + 4]
        of_class = of_class.clone()
        of_class[:, 0::2].clamp_(0, SIZE[1])
        of_class[:, 1::2].clamp_(0, SIZE[0])
        for i in nms(of_class, scores[rows, k], iou).tolist():
            found.append((scores[rows[i], k].item(), k, rows[i], of_class[i]))
    return sorted(found, key=lambda each: -each[0])


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("topk", [-1, 0, 9])
def test_detections_equal_a_slow_loop(agnostic: bool, topk: int) -> None:
    boxes = random_boxes(30 if agnostic else 30 * K, seed=2).reshape(30, -1)
    scores = random_probs(30)
    found, rows = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.1, 0.4, topk)
    expected = slow_detections(boxes, scores, 0.1, 0.4)[: topk if topk >= 0 else None]
    assert found.pred_classes.tolist() == [k for _, k, _, _ in expected]
    assert rows.tolist() == [row for _, _, row, _ in expected]
    assert found.scores.tolist() == [score for score, _, _, _ in expected]
    assert found.pred_boxes.tensor.tolist() == [box.tolist() for _, _, _, box in expected]


def test_images_do_not_see_each_other() -> None:
    boxes, scores = [random_boxes(n, seed=n) for n in (5, 0, 8)], [random_probs(n, seed=n) for n in (5, 0, 8)]
    together, rows = fast_rcnn_inference(boxes, scores, [SIZE] * 3, 0.05, 0.5, 100)
    assert len(together[1]) == 0 and len(rows[1]) == 0
    for i in range(3):
        alone, _ = fast_rcnn_inference_single_image(boxes[i], scores[i], SIZE, 0.05, 0.5, 100)
        assert torch.equal(together[i].pred_boxes.tensor, alone.pred_boxes.tensor)
        assert torch.equal(together[i].scores, alone.scores)


def test_permuted_classes_give_permuted_detections() -> None:
    order = torch.tensor([2, 0, 3, 1])
    boxes, scores = random_boxes(20), random_probs(20)
    first, _ = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.1, 0.5, 50)
    permuted = torch.cat((scores[:, order], scores[:, -1:]), dim=1)
    second, _ = fast_rcnn_inference_single_image(boxes, permuted, SIZE, 0.1, 0.5, 50)
    assert torch.equal(order[second.pred_classes], first.pred_classes)
    assert torch.equal(first.scores, second.scores)


def test_a_detection_scores_more_than_the_threshold() -> None:
    scores = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.5], [0.0, 0.75, 0.0, 0.0, 0.25]])
    found, _ = fast_rcnn_inference_single_image(random_boxes(2), scores, SIZE, 0.5, 0.5, 10)
    assert found.scores.tolist() == [0.75]


def test_rows_that_are_not_finite_are_dropped() -> None:
    boxes, scores = random_boxes(4), random_probs(4)
    boxes[1, 2], scores[2, 0] = float("inf"), float("nan")
    found, _ = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.0, 1.0, -1)
    kept, _ = fast_rcnn_inference_single_image(boxes[[0, 3]], scores[[0, 3]], SIZE, 0.0, 1.0, -1)
    assert torch.equal(found.scores, kept.scores)


@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_equal_a_slow_computation(agnostic: bool) -> None:
    layers, proposals = predictor(cls_agnostic_bbox_reg=agnostic, loss_weight=0.5), regions(7, 6)
    x = torch.randn(13, 6, generator=torch.Generator().manual_seed(4))
    scores, deltas = predictions = layers(x)
    with EventStorage():
        losses = layers.losses(predictions, proposals)
    total_cls, total_box, row = 0.0, 0.0, 0
    for each in proposals:
        for i in range(len(each)):
            k = int(each.gt_classes[i])
            total_cls -= scores[row].log_softmax(dim=0)[k]
            if k < K:
                wanted = layers.box2box_transform.get_deltas(
                    each.proposal_boxes.tensor[i : i + 1], each.gt_boxes.tensor[i : i + 1]
                )
                own = deltas[row] if agnostic else deltas[row, 4 * k : 4 * k + 4]
                total_box += (own - wanted[0]).abs().sum()
            row += 1
    assert_close(losses["loss_cls"], 0.5 * total_cls / 13)
    assert_close(losses["loss_box_reg"], 0.5 * total_box / 13)


def test_sigmoid_loss_sums_over_classes_and_averages_over_regions() -> None:
    layers, proposals = predictor(use_sigmoid_ce=True), regions(5)
    predictions = layers(torch.randn(5, 6))
    with EventStorage():
        loss = layers.losses(predictions, proposals)["loss_cls"]
    target = torch.eye(K + 1)[proposals[0].gt_classes][:, :K]
    expected = F.binary_cross_entropy_with_logits(predictions[0][:, :K], target, reduction="sum") / 5
    assert_close(loss, expected)
    (probs,) = layers.predict_probs(predictions, proposals)
    assert_close(probs, predictions[0].sigmoid())


def test_without_foreground_or_regions_losses_stay_differentiable() -> None:
    for options in ({}, {"use_sigmoid_ce": True}, {"box_reg_loss_type": "giou"}):
        for proposals in (regions(3, background=True), regions(0, 0)):
            layers = predictor(**options)
            with EventStorage():
                losses = layers.losses(layers(torch.randn(sum(map(len, proposals)), 6)), proposals)
            assert losses["loss_box_reg"].item() == 0
            sum(losses.values()).backward()
            assert not layers.bbox_pred.weight.grad.any()


def test_a_region_without_ground_truth_boxes_is_background() -> None:
    layers, proposals = predictor(), regions(3, 3)
    plain = Instances(SIZE, proposal_boxes=proposals[1].proposal_boxes, gt_classes=torch.full((3,), K))
    x = torch.randn(6, 6)
    with EventStorage():
        losses = layers.losses(layers(x), [proposals[0], plain])
        plain.gt_boxes = Boxes(torch.full((3, 4), 7.0))
        same = layers.losses(layers(x), [proposals[0], plain])
    assert {name: loss.item() for name, loss in losses.items()} == {name: loss.item() for name, loss in same.items()}


def test_regression_learns_the_deltas() -> None:
    layers, proposals = predictor(box_reg_loss_type="giou", cls_agnostic_bbox_reg=True), regions(6)
    exact = layers.box2box_transform.get_deltas(proposals[0].proposal_boxes.tensor, proposals[0].gt_boxes.tensor)
    with EventStorage():
        losses = layers.losses((torch.zeros(6, K + 1), exact), proposals)
    assert losses["loss_box_reg"].item() == pytest.approx(0, abs=1e-5)
    (decoded,) = layers.predict_boxes((torch.zeros(6, K + 1), exact), proposals)
    assert_close(decoded, proposals[0].gt_boxes.tensor, rtol=1e-4, atol=1e-3)


def test_boxes_of_the_true_classes() -> None:
    layers, proposals = predictor(), regions(5, 4)
    predictions = layers(torch.randn(9, 6))
    every = layers.predict_boxes(predictions, proposals)
    own = layers.predict_boxes_for_gt_classes(predictions, proposals)
    for each, boxes, chosen in zip(proposals, every, own, strict=True):
        for i, k in enumerate(each.gt_classes.tolist()):
            if k < K:
                assert torch.equal(chosen[i], boxes[i, 4 * k : 4 * k + 4])
    assert len(layers.predict_boxes(predictions, [])) == 0


def test_federated_loss_counts_some_classes() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 1.0])
    layers = predictor(
        use_sigmoid_ce=True, use_fed_loss=True, get_fed_loss_cls_weights=lambda: weights, fed_loss_num_classes=2
    )
    assert "fed_loss_cls_weights" in dict(layers.named_buffers())
    proposals = regions(4)
    proposals[0].gt_classes = torch.tensor([2, 2, 2, 2])
    predictions = layers(torch.randn(4, 6))
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        with EventStorage():
            loss = layers.losses(predictions, proposals)["loss_cls"]
        options = {}
        for drawn in (1, 3):  # class 0 has no weight, class 2 is there already
            target = torch.eye(K)[[2, 2, 2, 2]][:, [2, drawn]]
            logits = predictions[0][:, [2, drawn]]
            options[drawn] = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / 4
        hits = [drawn for drawn, expected in options.items() if torch.isclose(loss, expected)]
        assert hits
        seen.update(hits)
    assert seen == {1, 3}


def test_classification_statistics() -> None:
    logits = torch.eye(K + 1)[[0, 1, K, K, 2]]
    with EventStorage() as storage:
        _log_classification_stats(logits, torch.tensor([0, 2, 1, K, K]), prefix="here")
        _log_classification_stats(logits[:0], torch.tensor([], dtype=torch.int64), prefix="none")
        _log_classification_stats(logits[3:4], torch.tensor([K]), prefix="background")
    found = {name: value for name, (value, _) in storage.latest().items()}
    assert found == pytest.approx(
        {
            "here/cls_accuracy": 2 / 5,
            "here/fg_cls_accuracy": 1 / 3,
            "here/false_negative": 1 / 3,
            "background/cls_accuracy": 1.0,
        }
    )


def test_settings_come_from_the_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.2
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 7
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 4.0
    layers = FastRCNNOutputLayers(cfg, ShapeSpec(channels=3, height=2, width=2))
    assert layers.cls_score.in_features == 12
    assert layers.bbox_pred.out_features == 4 * K
    assert layers.loss_weight == {"loss_box_reg": 4.0}
    assert tuple(layers.box2box_transform.weights) == (10.0, 10.0, 5.0, 5.0)
    assert (layers.test_score_thresh, layers.test_nms_thresh, layers.test_topk_per_image) == (0.2, 0.3, 7)


def test_box_head_of_convolutions_gives_a_map() -> None:
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.CONV_DIM, cfg.MODEL.ROI_BOX_HEAD.NORM = 2, 32, "GN"
    head = build_box_head(cfg, ShapeSpec(channels=3, height=5, width=4))
    assert isinstance(head, FastRCNNConvFCHead)
    shape = head.output_shape
    assert (shape.channels, shape.height, shape.width) == (32, 5, 4)
    assert head(torch.randn(2, 3, 5, 4)).shape == (2, 32, 5, 4)
    assert "conv1.norm.weight" in head.state_dict() and "conv1.bias" not in head.state_dict()
    assert head(torch.randn(0, 3, 5, 4)).shape == (0, 32, 5, 4)
