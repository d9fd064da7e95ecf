"""What the bundled two-stage models do beyond the real ones: errors that name the setting, more that works."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from detectron2 import modeling
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator, build_roi_heads, proposal_generator, roi_heads
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    ROIHeads,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.third_party.detectron2.small_models import c4_config, cascade_config, mask_rcnn_config, two_boxes

SHAPES = {
    name: ShapeSpec(channels=32, stride=stride) for name, stride in {"p2": 4, "p3": 8, "p4": 16, "res4": 16}.items()
}


def predictor(**options: Any) -> FastRCNNOutputLayers:
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    return FastRCNNOutputLayers(6, box2box_transform=transform, num_classes=3, **options)


def test_classes_beyond_those_of_the_model_are_named() -> None:
    heads = build_roi_heads(mask_rcnn_config(2), SHAPES)
    proposals = Instances((48, 56), proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))
    message = r"class 2, but the model has 2 classes, 0 to 1: set MODEL.ROI_HEADS.NUM_CLASSES"
    with EventStorage(), pytest.raises(ValueError, match=message):
        heads.label_and_sample_proposals([proposals], [two_boxes((48, 56))])


def test_masks_that_are_missing_are_named() -> None:
    region = Instances((9, 9), proposal_boxes=Boxes(torch.ones(1, 4)), gt_classes=torch.tensor([0]))
    with EventStorage(), pytest.raises(ValueError, match="without 'gt_masks'.*set MODEL.MASK_ON to False"):
        mask_rcnn_loss(torch.zeros(1, 1, 4, 4), [region])


def changed(cfg: CfgNode, *settings: Any) -> CfgNode:
    cfg.merge_from_list(list(settings))
    return cfg


@pytest.mark.parametrize(
    "cfg, message",
    [
        (
            changed(mask_rcnn_config(2), "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p9"]),
            r"MODEL.ROI_HEADS.IN_FEATURES is \['p2', 'p9'\], expected some of the backbone's outputs p2, p3, p4, res4",
        ),
        (changed(mask_rcnn_config(2), "MODEL.ROI_HEADS.IN_FEATURES", []), r"IN_FEATURES is \[\], expected some of"),
        (changed(c4_config(2), "MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4"]), "Res5ROIHeads takes one feature map"),
        (changed(c4_config(2), "MODEL.KEYPOINT_ON", True), "KEYPOINT_ON is set, but Res5ROIHeads has no"),
        (
            changed(c4_config(2), "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]),
            "DEFORM_ON_PER_STAGE: the res5 stage of Res5ROIHeads cannot be deformable",
        ),
        (
            changed(cascade_config(2), "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False),
            "set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True",
        ),
        (
            changed(cascade_config(2), "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.6, 0.7, 0.8)),
            "IOUS starts with 0.6, but proposals are sampled by MODEL.ROI_HEADS.IOU_THRESHOLDS 0.5; make them equal",
        ),
        (changed(cascade_config(2), "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6)), "has 2 IOUS and 3 BBOX_REG_WEI"),
        (changed(mask_rcnn_config(2), "MODEL.ROI_BOX_HEAD.NUM_FC", 0), "has no layers: set MODEL.ROI_BOX_HEAD.NUM_CON"),
    ],
)
def test_settings_of_the_heads_are_refused_with_their_key_and_value(cfg: CfgNode, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_roi_heads(cfg, SHAPES)


def test_maps_of_different_width_are_refused() -> None:
    cfg = mask_rcnn_config(2)
    shapes = SHAPES | {"p3": ShapeSpec(channels=16, stride=8)}
    with pytest.raises(ValueError, match=r"IN_FEATURES is \['p2', 'p3'\], whose channels are \[32, 16\]"):
        build_roi_heads(cfg, shapes)
    with pytest.raises(ValueError, match=r"MODEL.RPN.IN_FEATURES must name maps .* these have \[32, 16, 32\]"):
        build_proposal_generator(cfg, shapes)


def test_settings_of_the_proposals_are_refused_with_their_key_and_value() -> None:
    cfg = mask_rcnn_config(2)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12], [24, 30], [48]]
    with pytest.raises(ValueError, match=r"MODEL.ANCHOR_GENERATOR must give each level equally many .* \[3, 6, 3\]"):
        build_proposal_generator(cfg, SHAPES)
    cfg.MODEL.RPN.IN_FEATURES = ["p7"]
    with pytest.raises(ValueError, match=r"MODEL.RPN.IN_FEATURES is \['p7'\], expected some of"):
        build_proposal_generator(cfg, SHAPES)
    with pytest.raises(ValueError, match=r"MODEL.RPN.CONV_DIMS is \[4, 0\]; expected positive numbers, or -1"):
        StandardRPNHead(in_channels=8, num_anchors=3, conv_dims=[4, 0])
    cfg.MODEL.RPN.HEAD_NAME = "Nobody"
    cfg.MODEL.RPN.IN_FEATURES = ["p2"]
    with pytest.raises(KeyError, match="No object named 'Nobody' found in 'RPN_HEAD' registry! Registered: Standard"):
        build_proposal_generator(cfg, SHAPES)


def test_federated_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="USE_FED_LOSS is for sigmoid scores: set USE_SIGMOID_CE to True"):
        predictor(use_fed_loss=True)
    with pytest.raises(ValueError, match="needs get_fed_loss_cls_weights"):
        predictor(use_fed_loss=True, use_sigmoid_ce=True)
    with pytest.raises(ValueError, match="weights of 5 classes .* but MODEL.ROI_HEADS.NUM_CLASSES is 3"):
        predictor(use_fed_loss=True, use_sigmoid_ce=True, get_fed_loss_cls_weights=lambda: torch.ones(5))


def test_federated_loss_of_fewer_classes_than_it_draws_is_the_full_loss() -> None:
    federated = predictor(use_sigmoid_ce=True, use_fed_loss=True, get_fed_loss_cls_weights=lambda: torch.ones(3))
    logits, classes = torch.randn(5, 4), torch.tensor([0, 3, 3, 1, 0])
    plain = predictor(use_sigmoid_ce=True)
    expected = plain.sigmoid_cross_entropy_loss(logits, classes)
    assert_close(federated.sigmoid_cross_entropy_loss(logits, classes), expected)


def test_losses_of_no_region_are_differentiable() -> None:
    layers = predictor(use_sigmoid_ce=True)
    for proposals in ([], [Instances((9, 9), proposal_boxes=Boxes([]), gt_classes=torch.zeros(0).long())]):
        losses = layers.losses(layers(torch.zeros(0, 6)), proposals)
        sum(losses.values()).backward()
        assert [loss.item() for loss in losses.values()] == [0, 0]
    assert not layers.cls_score.weight.grad.any()


def test_heads_without_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="has no layers"):
        FastRCNNConvFCHead(ShapeSpec(channels=4, height=7, width=7), conv_dims=[], fc_dims=[])
    with pytest.raises(ValueError, match="needs conv_dims"):
        MaskRCNNConvUpsampleHead(ShapeSpec(channels=4), num_classes=2, conv_dims=[])


def test_a_cascade_needs_one_of_each_per_stage() -> None:
    with pytest.raises(ValueError, match="got 1 heads, 2 predictors and 1 matchers"):
        CascadeROIHeads(
            box_in_features=[], box_pooler=None, box_heads=[1], box_predictors=[1, 2], proposal_matchers=[1]
        )


def test_keypoints_are_left_out() -> None:
    cfg = changed(mask_rcnn_config(2), "MODEL.KEYPOINT_ON", True)
    with pytest.raises(ImportError, match="MODEL.KEYPOINT_ON needs the real detectron2"):
        build_roi_heads(cfg, SHAPES)
    with pytest.raises(ImportError, match="NAME 'KRCNNConvDeconvUpsampleHead' needs the real detectron2"):
        modeling.build_keypoint_head(get_cfg(), ShapeSpec(channels=4))
    heads = build_roi_heads(mask_rcnn_config(2), SHAPES)
    with pytest.raises(ImportError, match="a keypoint head in StandardROIHeads needs the real detectron2"):
        StandardROIHeads(
            box_in_features=["p2"],
            box_pooler=heads.box_pooler,
            box_head=heads.box_head,
            box_predictor=heads.box_predictor,
            keypoint_in_features=["p2"],
            num_classes=2,
            batch_size_per_image=8,
            positive_fraction=0.5,
            proposal_matcher=heads.proposal_matcher,
        )


@pytest.mark.parametrize("package", [proposal_generator, roi_heads])
def test_parts_that_are_left_out_say_so(package: Any) -> None:
    for name in package.LEFT_OUT:
        for module in (package, modeling):
            with pytest.raises(ImportError, match=f"{name} needs the real detectron2"):
                getattr(module, name)
    with pytest.raises(ImportError, match="rrpn.RRPN needs the real detectron2"):
        from detectron2.modeling.proposal_generator.rrpn import RRPN  # noqa: F401
    with pytest.raises(ImportError, match="rotated_fast_rcnn.RROIHeads needs the real detectron2"):
        from detectron2.modeling.roi_heads.rotated_fast_rcnn import RROIHeads  # noqa: F401


def test_base_heads_leave_forward_to_their_subclasses() -> None:
    heads = ROIHeads(num_classes=2, batch_size_per_image=8, positive_fraction=0.5, proposal_matcher=None)
    with pytest.raises(NotImplementedError, match="ROIHeads must define forward"):
        heads(None, {}, [])
