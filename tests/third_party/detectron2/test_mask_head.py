"""The mask head: its loss, its predictions, what it stores."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

SIZE = (20, 30)
K = 3


def left_half(bitmaps: bool) -> Instances:
    """Two regions: an object in the left half of the first, and one that fills the second."""
    boxes = torch.tensor([[4.0, 4.0, 12.0, 12.0], [16.0, 2.0, 24.0, 18.0]])
    masks: Any = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 4:12, 4:8] = True
    masks[1, 2:18, 16:24] = True
    masks = BitMasks(masks)
    if not bitmaps:
        corners = [[4.0, 4.0, 8.0, 4.0, 8.0, 12.0, 4.0, 12.0], [16.0, 2.0, 24.0, 2.0, 24.0, 18.0, 16.0, 18.0]]
        masks = PolygonMasks([[np.array(each)] for each in corners])
    return Instances(SIZE, proposal_boxes=Boxes(boxes), gt_classes=torch.tensor([2, 0]), gt_masks=masks)


def wanted_masks() -> Tensor:
    wanted = torch.ones(2, 8, 8)
    wanted[0, :, 4:] = 0
    return wanted


@pytest.mark.parametrize("bitmaps", [False, True])
@pytest.mark.parametrize("num_masks", [1, K])
def test_loss_compares_the_mask_of_the_true_class(bitmaps: bool, num_masks: int) -> None:
    logits = torch.randn(2, num_masks, 8, 8, generator=torch.Generator().manual_seed(0))
    with EventStorage() as storage:
        loss = mask_rcnn_loss(logits, [left_half(bitmaps)])
    own = torch.stack((logits[0, 2], logits[1, 0])) if num_masks > 1 else logits[:, 0]
    assert_close(loss, F.binary_cross_entropy_with_logits(own, wanted_masks()))
    inside, found = wanted_masks().bool(), own > 0
    stats = {name: value for name, (value, _) in storage.latest().items()}
    assert stats == pytest.approx(
        {
            "mask_rcnn/accuracy": (found == inside).float().mean().item(),
            "mask_rcnn/false_positive": (found & ~inside).sum().item() / (~inside).sum().item(),
            "mask_rcnn/false_negative": (~found & inside).sum().item() / inside.sum().item(),
        }
    )


def test_images_without_foreground_are_passed_over() -> None:
    logits = torch.randn(2, K, 8, 8)
    empty = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    with EventStorage():
        assert_close(mask_rcnn_loss(logits, [empty, left_half(True)]), mask_rcnn_loss(logits, [left_half(True), empty]))


def test_without_foreground_the_loss_is_a_differentiable_zero() -> None:
    logits = torch.randn(0, K, 8, 8, requires_grad=True)
    empty = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    with EventStorage() as storage:
        loss = mask_rcnn_loss(logits, [empty, empty])
    loss.backward()
    assert loss.item() == 0
    assert not storage.latest()


def test_masks_are_square() -> None:
    with EventStorage(), pytest.raises(AssertionError):
        mask_rcnn_loss(torch.randn(2, K, 8, 6), [left_half(True)])


def test_pictures_of_masks() -> None:
    logits = torch.randn(2, K, 8, 8)
    with EventStorage() as storage:
        mask_rcnn_loss(logits, [left_half(True)], vis_period=2)
        assert len(storage._vis_data) == 2
        _, picture, _ = storage._vis_data[0]
        assert tuple(picture.shape) == (3, 8, 16)
        assert_close(torch.as_tensor(picture)[0, :, 8:], wanted_masks()[0])
        storage.iter = 1
        mask_rcnn_loss(logits, [left_half(True)], vis_period=2)
        assert len(storage._vis_data) == 2


def test_predictions_are_the_masks_of_the_predicted_classes() -> None:
    logits = torch.randn(3, K, 8, 8)
    images = [Instances(SIZE, pred_classes=torch.tensor(classes)) for classes in ([1], [2, 0])]
    mask_rcnn_inference(logits, images)
    assert_close(images[0].pred_masks, logits[:1, 1:2].sigmoid())
    assert_close(images[1].pred_masks, torch.stack((logits[1, 2:3], logits[2, 0:1])).sigmoid())
    agnostic = [Instances(SIZE, pred_classes=torch.tensor([5, 6, 7]))]
    mask_rcnn_inference(logits[:, :1], agnostic)
    assert_close(agnostic[0].pred_masks, logits[:, :1].sigmoid())


def test_head_by_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    head_settings = cfg.MODEL.ROI_MASK_HEAD
    head_settings.NUM_CONV, head_settings.CONV_DIM, head_settings.NORM = 2, 32, "GN"
    head = build_mask_head(cfg, ShapeSpec(channels=4, height=7, width=7))
    assert isinstance(head, MaskRCNNConvUpsampleHead) and isinstance(head, BaseMaskRCNNHead)
    assert head.layers(torch.randn(2, 4, 7, 7)).shape == (2, K, 14, 14)
    assert "mask_fcn2.norm.weight" in head.state_dict() and "mask_fcn2.bias" not in head.state_dict()
    assert head.layers(torch.randn(0, 4, 7, 7)).shape == (0, K, 14, 14)
    head_settings.CLS_AGNOSTIC_MASK = True
    agnostic = build_mask_head(cfg, ShapeSpec(channels=4, height=7, width=7))
    assert agnostic.predictor.out_channels == 1


def test_loss_has_a_weight() -> None:
    torch.manual_seed(0)
    head = MaskRCNNConvUpsampleHead(ShapeSpec(channels=4), num_classes=K, conv_dims=[8], loss_weight=0.5)
    x = torch.randn(2, 4, 4, 4)
    with EventStorage():
        losses = head(x, [left_half(True)])
        expected = mask_rcnn_loss(head.layers(x), [left_half(True)])
    assert_close(losses["loss_mask"], 0.5 * expected)
    images = [Instances(SIZE, pred_classes=torch.tensor([0, 1]))]
    assert head.eval()(x, images) is images or images[0].has("pred_masks")


def test_base_head_leaves_the_layers_to_its_subclasses() -> None:
    with pytest.raises(NotImplementedError):
        BaseMaskRCNNHead()(torch.randn(1, 2, 4, 4), [])
