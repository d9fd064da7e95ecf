"""Heads on regions: sampling, standard, cascade and C4 heads inside small models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model, build_roi_heads
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, ROIHeads, StandardROIHeads, select_foreground_proposals
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.third_party.detectron2.small_models import (
    c4_config,
    cascade_config,
    mask_rcnn_config,
    nothing,
    random_inputs,
    two_boxes,
)

K = 3
SIZE = (48, 56)
CONFIGS = [mask_rcnn_config, cascade_config, c4_config]
every_kind = pytest.mark.parametrize("make_config", CONFIGS)


def proposals_of(boxes: list[list[float]]) -> Instances:
    return Instances(
        SIZE, proposal_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)), objectness_logits=torch.zeros(len(boxes))
    )


def base_heads(**options: Any) -> ROIHeads:
    settings: dict[str, Any] = {
        "num_classes": K,
        "batch_size_per_image": 8,
        "positive_fraction": 0.5,
        "proposal_matcher": Matcher([0.5], [0, 1]),
        "proposal_append_gt": False,
    }
    return ROIHeads(**settings | options)


def model_of(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_score.weight", "mask_head.predictor.weight")):
            nn.init.normal_(parameter, std=0.5)  # else all scores are much alike
    return model


def test_proposals_get_the_object_that_they_overlap_most() -> None:
    heads = base_heads()
    target = two_boxes(SIZE, classes=(2, 0))
    target.gt_ids = torch.tensor([11, 22])
    target.other = torch.arange(2)
    near = [[5.0, 6.0, 30.0, 28.0], [24.0, 20.0, 44.0, 44.0], [0.0, 0.0, 5.0, 5.0], [4.0, 6.0, 31.0, 28.0]]
    with EventStorage() as storage:
        found, empty = heads.label_and_sample_proposals(
            [proposals_of(near), proposals_of(near)], [target, nothing(SIZE)]
        )
    assert (found.gt_classes == K).tolist() == [False, False, False, True], "foreground comes first"
    by_box = {tuple(box.tolist()): i for i, box in enumerate(found.proposal_boxes.tensor)}
    classes = [found.gt_classes[by_box[tuple(box)]].item() for box in near]
    assert classes == [2, 0, K, 2]
    assert [found.gt_ids[by_box[tuple(box)]].item() for box in near[:2]] == [11, 22]
    assert_close(found.gt_boxes.tensor[by_box[tuple(near[1])]], target.gt_boxes.tensor[1])
    assert found.has("gt_masks") and not found.has("other")
    assert empty.gt_classes.tolist() == [K] * 4 and not empty.has("gt_boxes")
    assert storage.latest()["roi_head/num_fg_samples"][0] == 1.5
    assert storage.latest()["roi_head/num_bg_samples"][0] == 2.5


def test_sampling_keeps_to_its_numbers_and_ignores_some() -> None:
    heads = base_heads(batch_size_per_image=4, positive_fraction=0.25, proposal_matcher=Matcher([0.3, 0.6], [0, -1, 1]))
    boxes = [[4.0, 6.0, 30.0, 28.0]] * 3 + [[4.0, 6.0, 30.0, 16.0]] * 3 + [[0.0, 40.0, 9.0, 48.0]] * 6
    with EventStorage():
        (found,) = heads.label_and_sample_proposals([proposals_of(boxes)], [two_boxes(SIZE)])
    assert found.gt_classes.tolist() == [0, K, K, K]


def test_ground_truth_serves_as_proposals() -> None:
    with EventStorage():
        (found,) = base_heads(proposal_append_gt=True).label_and_sample_proposals([proposals_of([])], [two_boxes(SIZE)])
    assert sorted(found.gt_classes.tolist()) == [0, 2]
    assert_close(found.proposal_boxes.tensor, found.gt_boxes.tensor)


def test_foreground_is_selected() -> None:
    each = Instances(SIZE, gt_classes=torch.tensor([0, K, -1, 2]))
    (found,), (mask,) = select_foreground_proposals([each], K)
    assert found.gt_classes.tolist() == [0, 2]
    assert mask.tolist() == [True, False, False, True]


@every_kind
def test_a_batch_is_its_images_one_by_one(make_config: Callable[[int], CfgNode]) -> None:
    model = model_of(make_config(K)).eval()
    batch = random_inputs((48, 64), (48, 64))
    with torch.no_grad():
        together = model.inference(batch, do_postprocess=False)
        for i, entry in enumerate(batch):
            (alone,) = model.inference([entry], do_postprocess=False)
            assert len(alone) > 3
            assert_close(together[i].pred_boxes.tensor, alone.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
            assert_close(together[i].scores, alone.scores, rtol=1e-4, atol=1e-5)
            assert_close(together[i].pred_masks, alone.pred_masks, rtol=1e-3, atol=1e-4)


@every_kind
def test_training_reaches_every_part(make_config: Callable[[int], CfgNode]) -> None:
    cfg = make_config(K)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    model = model_of(cfg)
    batch = random_inputs(SIZE, SIZE)
    batch[0]["instances"], batch[1]["instances"] = two_boxes(SIZE), nothing(SIZE)
    with EventStorage():
        losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert "loss_mask" in losses
    sum(losses.values()).backward()
    # In the topmost level of a pyramid there may be no region of such a small image.
    without = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert not {name for name in without if not name.startswith("backbone.fpn_output")}


@every_kind
def test_images_without_objects_train(make_config: Callable[[int], CfgNode]) -> None:
    model = model_of(make_config(K))
    batch = random_inputs(SIZE)
    batch[0]["instances"] = nothing(SIZE)
    with EventStorage():
        losses = model(batch)
    assert losses["loss_mask"].item() == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@every_kind
def test_training_needs_ground_truth(make_config: Callable[[int], CfgNode]) -> None:
    model = model_of(make_config(K))
    images = model.preprocess_image(random_inputs(SIZE))
    features = model.backbone(images.tensor)
    with EventStorage(), pytest.raises(AssertionError):
        model.roi_heads(images, features, [proposals_of([[0.0, 0.0, 9.0, 9.0]])], None)


@every_kind
def test_no_proposals_give_no_detections(make_config: Callable[[int], CfgNode]) -> None:
    model = model_of(make_config(K)).eval()
    images = model.preprocess_image(random_inputs(SIZE))
    with torch.no_grad():
        (found,), losses = model.roi_heads(images, model.backbone(images.tensor), [proposals_of([])])
    assert losses == {} and len(found) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert found.pred_masks.shape[:2] == (0, 1)


@every_kind
def test_given_boxes_get_masks_alone(make_config: Callable[[int], CfgNode]) -> None:
    model = model_of(make_config(K)).eval()
    batch = random_inputs((48, 64))
    with torch.no_grad():
        (found,) = model.inference(batch, do_postprocess=False)
        given = Instances(found.image_size, pred_boxes=found.pred_boxes, pred_classes=found.pred_classes)
        (again,) = model.inference(batch, detected_instances=[given], do_postprocess=False)
    assert_close(again.pred_masks, found.pred_masks, rtol=1e-4, atol=1e-5)
    assert not again.has("scores")
    with pytest.raises((AssertionError, AttributeError)):
        model.inference(batch, detected_instances=[Instances(SIZE, pred_boxes=found.pred_boxes)])


def test_masks_may_train_on_predicted_boxes() -> None:
    cfg = mask_rcnn_config(K)
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    model = model_of(cfg)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.5)
    images, target = model.preprocess_image(random_inputs(SIZE)), two_boxes(SIZE)
    features = model.backbone(images.tensor)
    with EventStorage():
        (found,), _ = model.roi_heads(images, features, [proposals_of([])], [target])
    assert len(found) == 2
    assert (found.proposal_boxes.tensor - found.gt_boxes.tensor).abs().min() > 1e-3
    assert not found.proposal_boxes.tensor.requires_grad


def test_without_masks_there_is_no_mask_head() -> None:
    cfg = mask_rcnn_config(K)
    cfg.MODEL.MASK_ON = False
    model = model_of(cfg)
    assert not model.roi_heads.mask_on and not hasattr(model.roi_heads, "mask_head")
    with torch.no_grad():
        (found,) = model.eval()(random_inputs(SIZE))
    assert not found["instances"].has("pred_masks")


def test_a_mask_head_may_take_the_feature_maps_themselves() -> None:
    cfg = mask_rcnn_config(K)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    heads = model_of(cfg).roi_heads

    class Whole(nn.Module):
        def forward(self, features: dict[str, Tensor], instances: list[Instances]) -> dict[str, Tensor]:
            self.got = (list(features), [len(each) for each in instances])
            return {"loss_mask": features["p2"].sum() * 0}

    heads.mask_pooler, heads.mask_head = None, Whole()
    maps = {name: torch.randn(1, 32, 12 >> i, 14 >> i) for i, name in enumerate(("p2", "p3", "p4"))}
    with EventStorage():
        heads(None, maps, [proposals_of([[0.0, 0.0, 9.0, 9.0]])], [two_boxes(SIZE)])
    assert heads.mask_head.got == (["p2", "p3"], [2])


def test_a_subclass_may_build_a_head_in_its_constructor() -> None:
    @ROI_HEADS_REGISTRY.register()
    class HeadsWithOwnMaskHead(StandardROIHeads):
        def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
            super().__init__(cfg, input_shape)
            self._init_mask_head(cfg, input_shape)

        def _init_mask_head(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
            self.mask_on = "built here"

    cfg = mask_rcnn_config(K)
    cfg.MODEL.ROI_HEADS.NAME = "HeadsWithOwnMaskHead"
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in {"p2": 4, "p3": 8}.items()}
    assert build_roi_heads(cfg, shapes).mask_on == "built here"


def cascade() -> CascadeROIHeads:
    heads = model_of(cascade_config(K)).roi_heads
    assert isinstance(heads, CascadeROIHeads)
    return heads


def test_cascade_averages_scores_and_takes_the_last_boxes() -> None:
    heads = cascade().eval()
    for predictor in heads.box_predictor:
        nn.init.normal_(predictor.bbox_pred.weight, std=0.3)
    maps = {name: torch.randn(1, 32, 12 >> i, 14 >> i) for i, name in enumerate(("p2", "p3"))}
    boxes = Boxes(torch.tensor([[4.0, 4.0, 20.0, 24.0], [10.0, 8.0, 40.0, 40.0], [30.0, 30.0, 50.0, 47.0]]))
    total: Any = 0
    with torch.no_grad():
        refined = boxes
        for stage in range(3):
            pooled = heads.box_pooler(list(maps.values()), [refined])
            scores, deltas = heads.box_predictor[stage](heads.box_head[stage](pooled))
            total = total + scores.softmax(dim=1) / 3
            refined = Boxes(heads.box_predictor[stage].box2box_transform.apply_deltas(deltas, refined.tensor))
            refined.clip(SIZE)
        for predictor in heads.box_predictor:
            predictor.test_score_thresh, predictor.test_nms_thresh = 0.0, 1.0
        (found,) = heads._forward_box(maps, [Instances(SIZE, proposal_boxes=boxes)])
    assert len(found) == 3 * K
    first = found[0]
    row, k = divmod(int(total[:, :K].argmax()), K)
    assert_close(first.scores[0], total[row, k])
    assert first.pred_classes.item() == k
    assert_close(first.pred_boxes.tensor[0], refined.tensor[row])


def test_later_stages_label_all_boxes_anew() -> None:
    heads = cascade()
    boxes = [[4.0, 6.0, 30.0, 28.0], [4.0, 6.0, 30.0, 20.0], [40.0, 0.0, 50.0, 9.0]]  # IoU 1, 0.64, 0
    with EventStorage() as storage:
        first = heads._match_and_label_boxes([proposals_of(boxes), proposals_of(boxes)], 1, [two_boxes(SIZE)] * 2)
        last = heads._match_and_label_boxes([proposals_of(boxes)], 2, [two_boxes(SIZE)])
        none = heads._match_and_label_boxes([proposals_of(boxes)], 1, [nothing(SIZE)])
        assert storage.latest()["stage2/roi_head/num_fg_samples"][0] == 1
    assert first[1].gt_classes.tolist() == [0, 0, K]
    assert last[0].gt_classes.tolist() == [0, K, K]
    assert_close(last[0].gt_boxes.tensor[1], two_boxes(SIZE).gt_boxes.tensor[0])
    assert none[0].gt_classes.tolist() == [K] * 3 and not none[0].gt_boxes.tensor.any()


def test_empty_boxes_are_dropped_in_training_only() -> None:
    heads = cascade()
    boxes = torch.tensor([[-9.0, 2.0, -3.0, 8.0], [50.0, 40.0, 70.0, 60.0]], requires_grad=True)
    (kept,) = heads._create_proposals_from_boxes([boxes], [SIZE])
    assert kept.proposal_boxes.tensor.tolist() == [[50.0, 40.0, 56.0, 48.0]]
    assert not kept.proposal_boxes.tensor.requires_grad
    (kept,) = heads.eval()._create_proposals_from_boxes([boxes], [SIZE])
    assert len(kept) == 2


def test_gradients_are_scaled() -> None:
    x = torch.randn(3, requires_grad=True)
    y = _ScaleGradient.apply(x, 0.25)
    assert torch.equal(y, x)
    (y * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert_close(x.grad, torch.tensor([0.25, 0.5, 1.0]))


def test_losses_of_a_cascade_are_named_by_stage() -> None:
    model = model_of(cascade_config(K))
    batch = random_inputs(SIZE)
    batch[0]["instances"] = two_boxes(SIZE)
    with EventStorage() as storage:
        losses = model(batch)
    expected = {f"loss_{part}_stage{k}" for part in ("cls", "box_reg") for k in range(3)}
    assert set(losses) == expected | {"loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert {f"stage{k}/fast_rcnn/cls_accuracy" for k in range(3)} <= set(storage.latest())


def test_settings_of_a_cascade_must_fit() -> None:
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in {"p2": 4, "p3": 8}.items()}
    cfg = cascade_config(K)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    with pytest.raises((AssertionError, ValueError)):
        build_roi_heads(cfg, shapes)
    cfg = cascade_config(K)
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.6, 0.7, 0.8)
    with pytest.raises((AssertionError, ValueError)):
        build_roi_heads(cfg, shapes)
    cfg = cascade_config(K)
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.5, 0.6)
    with pytest.raises((AssertionError, ValueError)):
        build_roi_heads(cfg, shapes)


@every_kind
def test_bfloat16_training_and_inference(make_config: Callable[[int], CfgNode]) -> None:
    model = model_of(make_config(K))
    batch = random_inputs(SIZE)
    batch[0]["instances"] = two_boxes(SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with EventStorage():
            losses = model(batch)
        with torch.no_grad():
            (found,) = model.eval()(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert found["instances"].pred_masks.shape[1:] == SIZE
