"""The dense head, its losses and the module around them."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from centernet.modeling.dense_heads.centernet import CenterNet
from centernet.modeling.dense_heads.centernet_head import CenterNetHead
from centernet.modeling.dense_heads.locations import flatten_levels, level_locations
from centernet.modeling.layers.heatmap_focal_loss import binary_heatmap_focal_loss, heatmap_focal_loss
from centernet.modeling.layers.iou_loss import IOULoss
from detectron2.layers import ShapeSpec
from tests.third_party.centernet.small_models import objects, one_stage_config


def detector(**settings: Any) -> CenterNet:
    return CenterNet(
        num_classes=3, in_features=("p3", "p4"), strides=(8, 16), sizes_of_interest=((0, 40), (30, 1000)), **settings
    )


def test_locations_are_centres_of_cells_row_by_row() -> None:
    expected = [[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [4.0, 12.0], [12.0, 12.0], [20.0, 12.0]]
    assert level_locations(2, 3, 8).tolist() == expected


def test_levels_are_flattened_level_by_level_then_image_by_image() -> None:
    maps = [torch.arange(2 * 2 * 1 * 2).reshape(2, 2, 1, 2), torch.arange(100, 104).reshape(2, 2, 1, 1)]
    assert flatten_levels(maps).tolist() == [[0, 2], [1, 3], [4, 6], [5, 7], [100, 101], [102, 103]]


def test_the_head_starts_with_its_prior_and_large_boxes() -> None:
    head = CenterNetHead(32, 2, num_classes=3, with_agn_hm=True, prior_prob=0.02)
    features = [torch.zeros(1, 32, 4, 4), torch.zeros(1, 32, 2, 2)]
    class_logits, distances, object_logits = head(features)
    for logits in (*class_logits, *object_logits):
        assert_close(logits.sigmoid(), torch.full_like(logits, 0.02))
    for level in distances:
        assert_close(level, torch.full_like(level, 8.0))
    assert head.cls_tower[0].weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_towers_without_norm_have_no_entry_for_it() -> None:
    names = [name for name in CenterNetHead(8, 1, norm="", num_box_convs=2).state_dict() if "bbox_tower" in name]
    assert names == [f"bbox_tower.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert isinstance(CenterNetHead(8, 1, norm="BN").bbox_tower[1], nn.BatchNorm2d)


def test_a_deformable_head_has_one_deformable_convolution_per_tower() -> None:
    head = CenterNetHead(8, 1, num_classes=2, norm="", num_cls_convs=2, num_box_convs=1, use_deformable=True)
    names = {name.rsplit(".", 2)[0] for name in head.state_dict() if ".offset." in name}
    assert names == {"cls_tower.2", "bbox_tower.0"}
    class_logits, distances, _ = head([torch.randn(1, 8, 5, 6)])
    assert class_logits[0].shape == (1, 2, 5, 6)
    assert distances[0].shape == (1, 4, 5, 6)


def test_a_head_without_any_heatmap_is_an_error() -> None:
    with pytest.raises(ValueError, match="ONLY_PROPOSAL leaves out the class heatmap: set MODEL.CENTERNET.WITH_AGN_HM"):
        CenterNetHead(8, 1, only_proposal=True)


def test_levels_of_different_width_are_an_error() -> None:
    cfg = one_stage_config(3)
    with pytest.raises(ValueError, match=r"MODEL.CENTERNET.IN_FEATURES\) have \[16, 32\] channels"):
        CenterNetHead(cfg, [ShapeSpec(channels=16), ShapeSpec(channels=32)])


def test_features_that_the_backbone_lacks_are_an_error() -> None:
    cfg = one_stage_config(3)
    with pytest.raises(ValueError, match="IN_FEATURES names p4, but the backbone returns p3"):
        CenterNet(cfg, {"p3": ShapeSpec(channels=16)})


def test_settings_of_different_numbers_of_levels_are_an_error() -> None:
    with pytest.raises(ValueError, match="got 1 features, 2 strides and 2 sizes of interest"):
        CenterNet(in_features=("p3",), strides=(8, 16), sizes_of_interest=((0, 1), (1, 2)))


def test_an_unknown_box_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match="box loss is 'l1', expected one of iou, linear_iou, giou"):
        CenterNet(loc_loss_type="l1")


@pytest.mark.parametrize("name", ["iou", "linear_iou", "giou"])
def test_equal_boxes_have_no_loss(name: str) -> None:
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.5, 0.5, 0.5]])
    assert_close(IOULoss(name)(boxes, boxes, reduction="none"), torch.zeros(2))


def test_giou_of_a_box_and_its_half() -> None:
    # Areas 4 and 2, intersection 2, union and hull 4: (2 + 1) / (4 + 1).
    loss = IOULoss("giou")(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0, 1.0]]))
    assert_close(loss, torch.tensor(1 - 3 / 5))


def test_focal_loss_of_one_positive_and_one_negative() -> None:
    logits = torch.tensor([0.0, math.log(3)])  # probabilities 1/2, 3/4
    positive, negative = binary_heatmap_focal_loss(logits, torch.tensor([1.0, 0.5]), torch.tensor([0]), alpha=0.25)
    assert_close(positive, torch.tensor(0.25 * math.log(2) / 4))
    assert_close(negative, torch.tensor(0.75 * math.log(4) * (9 / 16) * 0.5**4))


def test_confident_negatives_can_be_left_out() -> None:
    logits, none = torch.tensor([0.0, math.log(3)]), torch.zeros(0, dtype=torch.int64)
    _, every = binary_heatmap_focal_loss(logits[:1], torch.zeros(1), none)
    _, low = binary_heatmap_focal_loss(logits, torch.zeros(2), none, ignore_high_fp=0.7)
    assert_close(low, every)


def test_losses_leave_logits_alone_and_the_class_loss_sums_the_binary_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, heat = torch.randn(20, 3, generator=generator), torch.rand(20, 3, generator=generator)
    before = logits.clone()
    places, labels = torch.tensor([0, 5, 5]), torch.tensor([2, 0, 2])
    joint = torch.stack(heatmap_focal_loss(logits, heat, places, labels))
    single = [
        torch.stack(binary_heatmap_focal_loss(logits[:, label], heat[:, label], places[labels == label]))
        for label in range(3)
    ]
    assert_close(joint, torch.stack(single).sum(dim=0))
    assert torch.equal(logits, before)


def test_losses_without_objects_are_differentiable() -> None:
    model = detector(with_agn_hm=True)
    targets = model.assigner([objects([], [])], [(8, 12), (4, 6)])
    inputs = [torch.rand(120, 4), torch.randn(120, 3), torch.randn(120)]
    for each in inputs:
        each.requires_grad_()
    losses = model.losses(targets, *inputs)
    sum(losses.values()).backward()
    assert losses["loss_centernet_loc"] == losses["loss_centernet_pos"] == losses["loss_centernet_agn_pos"] == 0
    assert losses["loss_centernet_neg"] > 0
    assert not inputs[0].grad.any()
    assert inputs[1].grad.any()


def test_distances_that_are_not_finite_stop_the_training() -> None:
    model = detector()
    targets = model.assigner([objects([], [])], [(8, 12), (4, 6)])
    with pytest.raises(FloatingPointError, match="Training has diverged"):
        model.losses(targets, torch.full((120, 4), torch.inf), torch.zeros(120, 3), None)


def test_training_without_ground_truth_is_an_error() -> None:
    model = detector(centernet_head=CenterNetHead(32, 2, num_classes=3))
    features = {"p3": torch.zeros(1, 32, 8, 12), "p4": torch.zeros(1, 32, 4, 6)}
    with pytest.raises(AssertionError, match="CenterNet needs ground truth in training"):
        model(None, features, None)


def test_losses_are_normalised_by_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "centernet.modeling.dense_heads.centernet"
    other = torch.tensor([3.0, 4.0])  # positives and summed box weights of the other process
    inputs = [torch.rand(120, 4), torch.randn(120, 3), None]
    plain, local = detector(), detector(no_reduce=True)
    targets = plain.assigner([objects([[10, 10, 30, 30]], [1])], [(8, 12), (4, 6)])
    alone = plain.losses(targets, *inputs)
    monkeypatch.setattr(f"{module}.get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(other))
    shared = plain.losses(targets, *inputs)
    count, weight = len(targets.pos_inds), int((targets.distances.amax(dim=1) >= 0).sum())
    assert_close(shared["loss_centernet_pos"] * (count + 3) / 2, alone["loss_centernet_pos"] * count)
    assert_close(shared["loss_centernet_loc"] * (weight + 4) / 2, alone["loss_centernet_loc"] * weight)
    assert local.losses(targets, *inputs) == alone


def test_half_precision_outputs_have_losses_in_full_precision() -> None:
    model = detector(with_agn_hm=True, centernet_head=CenterNetHead(32, 2, num_classes=3, with_agn_hm=True))
    features = {"p3": torch.randn(1, 32, 8, 12), "p4": torch.randn(1, 32, 4, 6)}
    truth = [objects([[10, 10, 30, 30]], [1])]
    _, exact = model(None, features, truth)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = model(None, features, truth)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert_close(loss, exact[name], rtol=0.05, atol=0.01)
