"""Region proposal network: its head, its targets and losses, and the choice of proposals."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.ops import nms

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

SIZE = (48, 64)
STRIDES = (4, 8)


def small_rpn(**options: Any) -> RPN:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "in_features": ["p2", "p3"],
        "head": StandardRPNHead(in_channels=8, num_anchors=2),
        "anchor_generator": DefaultAnchorGenerator(
            sizes=[[10], [20]], aspect_ratios=[[0.5, 1.0]], strides=STRIDES, offset=0.0
        ),
        "anchor_matcher": Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        "box2box_transform": Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        "batch_size_per_image": 32,
        "positive_fraction": 0.5,
        "pre_nms_topk": (100, 50),
        "post_nms_topk": (40, 20),
    }
    return RPN(**settings | options)


def features(num_images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"p{level}": torch.randn(num_images, 8, SIZE[0] // stride, SIZE[1] // stride, generator=generator)
        for level, stride in enumerate(STRIDES, start=2)
    }


def images(num_images: int = 2) -> ImageList:
    return ImageList(torch.zeros(num_images, 3, *SIZE), [SIZE] * num_images)


def truth(*boxes: list[float]) -> Instances:
    return Instances(SIZE, gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))


def test_logits_and_deltas_come_in_the_order_of_the_anchors() -> None:
    class Marking(nn.Module):
        """Deltas that move each anchor by its own index; logits equal to that index."""

        def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            logits, deltas = [], []
            for x in maps:
                n, _, h, w = x.shape
                index = torch.arange(h * w * 2.0).reshape(h, w, 2).permute(2, 0, 1).expand(n, 2, h, w)
                logits.append(index)
                delta = torch.zeros(n, 2, 4, h, w)
                delta[:, :, 0] = index
                deltas.append(delta.flatten(1, 2))
            return logits, deltas

    model = small_rpn(head=Marking(), nms_thresh=1.0, pre_nms_topk=(10**6, 10**6), post_nms_topk=(10**6, 10**6)).eval()
    found: list[tuple[Tensor, Tensor]] = []
    model.predict_proposals = lambda anchors, logits, deltas, sizes: found.extend(zip(logits, deltas, strict=True))
    model(images(), features())
    for logits, deltas in found:
        index = torch.arange(float(logits.shape[1])).expand(2, -1)
        assert torch.equal(logits, index)
        assert torch.equal(deltas[..., 0], index)
        assert not deltas[..., 1:].any()


def slow_proposals(
    boxes: list[Tensor], logits: list[Tensor], before: int, after: int, thresh: float, side: float
) -> tuple[Tensor, Tensor]:
    """Proposals of one image, level by level and box by box."""
    kept: list[tuple[float, Tensor]] = []
    for level_boxes, level_logits in zip(boxes, logits, strict=True):
        best = level_logits.argsort(descending=True)[:before]
        candidates = level_boxes[best].clone()
        candidates[:, 0::2].clamp_(0, SIZE[1])
        candidates[:, 1::2].clamp_(0, SIZE[0])
        scores = level_logits[best]
        large = ((candidates[:, 2:] - candidates[:, :2]) > side).all(dim=1) & torch.isfinite(scores)
        candidates, scores = candidates[large], scores[large]
        for i in nms(candidates, scores, thresh).tolist():
            kept.append((scores[i].item(), candidates[i]))
    kept.sort(key=lambda each: -each[0])
    kept = kept[:after]
    return torch.stack([box for _, box in kept]), torch.tensor([score for score, _ in kept])


def random_predictions(num_images: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    boxes, logits = [], []
    for count in (60, 30):
        corner = torch.rand(num_images, count, 2, generator=generator) * 60 - 5
        boxes.append(torch.cat((corner, corner + torch.rand(num_images, count, 2, generator=generator) * 25), dim=2))
        logits.append(torch.randn(num_images, count, generator=generator))
    return boxes, logits


@pytest.mark.parametrize("before, after, side", [(100, 100, 0.0), (20, 100, 3.0), (100, 7, 10.0)])
def test_choice_of_proposals_equals_a_slow_loop(before: int, after: int, side: float) -> None:
    boxes, logits = random_predictions()
    found = find_top_rpn_proposals(boxes, logits, [SIZE, SIZE], 0.5, before, after, side, training=True)
    for i, each in enumerate(found):
        expected_boxes, expected_logits = slow_proposals(
            [b[i] for b in boxes], [x[i] for x in logits], before, after, 0.5, side
        )
        assert_close(each.proposal_boxes.tensor, expected_boxes)
        assert_close(each.objectness_logits, expected_logits)


def test_numbers_that_are_not_finite_end_a_training_and_are_dropped_otherwise() -> None:
    boxes, logits = random_predictions(1)
    boxes[0][0, 3, 2] = float("nan")
    logits[1][0, 4] = float("inf")
    with pytest.raises(FloatingPointError):
        find_top_rpn_proposals(boxes, logits, [SIZE], 1.0, 100, 100, -1.0, training=True)
    (found,) = find_top_rpn_proposals(boxes, logits, [SIZE], 1.0, 100, 100, -1.0, training=False)
    assert torch.isfinite(found.objectness_logits).all()
    assert torch.isfinite(found.proposal_boxes.tensor).all()


def test_a_batch_is_its_images_one_by_one() -> None:
    model, maps = small_rpn().eval(), features()
    together, losses = model(images(), maps)
    assert losses == {}
    for i in range(2):
        (alone,), _ = model(images(1), {name: x[i : i + 1] for name, x in maps.items()})
        assert_close(together[i].proposal_boxes.tensor, alone.proposal_boxes.tensor)
        assert_close(together[i].objectness_logits, alone.objectness_logits)


def test_the_number_of_proposals_depends_on_the_mode() -> None:
    model = small_rpn(nms_thresh=1.0)
    assert [len(each) for each in model.eval()(images(), features())[0]] == [20, 20]
    with EventStorage():
        proposals, _ = model.train()(images(), features(), [truth([4.0, 4.0, 20.0, 20.0])] * 2)
    assert [len(each) for each in proposals] == [40, 40]
    assert not proposals[0].proposal_boxes.tensor.requires_grad
    assert not proposals[0].objectness_logits.requires_grad


def test_losses_equal_a_slow_computation() -> None:
    model = small_rpn(batch_size_per_image=10**6, positive_fraction=1.0, loss_weight={"loss_rpn_loc": 3.0})
    targets = [truth([4.0, 4.0, 14.0, 14.0], [30.0, 20.0, 50.0, 40.0]), truth()]
    maps = features()
    with EventStorage() as storage:
        _, losses = model(images(), maps, targets)

    anchors = Boxes.cat(model.anchor_generator(list(maps.values())))
    logit_maps, delta_maps = model.rpn_head(list(maps.values()))
    total_cls, total_loc, num_positive, num_negative = 0.0, 0.0, 0, 0
    for i, target in enumerate(targets):
        logits = torch.cat([x[i].permute(1, 2, 0).flatten() for x in logit_maps])
        deltas = torch.cat([x[i].reshape(2, 4, *x.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4) for x in delta_maps])
        iou = pairwise_iou(target.gt_boxes, anchors)
        for a in range(len(anchors)):
            best = iou[:, a].max() if len(iou) else torch.zeros(())
            positive = len(iou) > 0 and bool(best >= 0.7 or (iou[:, a] == iou.max(dim=1).values).any())
            if not positive and best >= 0.3:
                continue
            label = torch.tensor(float(positive))
            total_cls += F.binary_cross_entropy_with_logits(logits[a], label)
            num_positive, num_negative = num_positive + positive, num_negative + (not positive)
            if positive:
                box = target.gt_boxes.tensor[iou[:, a].argmax()][None]
                wanted = model.box2box_transform.get_deltas(anchors.tensor[a][None], box)
                total_loc += (deltas[a] - wanted[0]).abs().sum()
    normalizer = 10**6 * 2
    assert_close(losses["loss_rpn_cls"], total_cls / normalizer, rtol=1e-4, atol=0)
    assert_close(losses["loss_rpn_loc"], 3 * total_loc / normalizer, rtol=1e-4, atol=0)
    assert storage.latest()["rpn/num_pos_anchors"][0] == num_positive / 2
    assert storage.latest()["rpn/num_neg_anchors"][0] == num_negative / 2


def test_anchors_are_sampled_up_to_the_batch_size() -> None:
    model = small_rpn(batch_size_per_image=20, positive_fraction=0.2)
    anchors = model.anchor_generator(list(features().values()))
    labels, boxes = model.label_and_sample_anchors(anchors, [truth([0.0, 0.0, 40.0, 40.0]), truth()])
    assert [(each == 1).sum().item() for each in labels] == [4, 0]
    assert [(each == 0).sum().item() for each in labels] == [16, 20]
    assert boxes[0].shape == (len(labels[0]), 4)
    assert_close(boxes[0][labels[0] == 1], torch.tensor([[0.0, 0.0, 40.0, 40.0]]).expand(4, 4))
    assert not boxes[1].any()


def test_anchors_beyond_the_border_may_be_left_out() -> None:
    model = small_rpn(batch_size_per_image=10**6, anchor_boundary_thresh=0)
    anchors = model.anchor_generator(list(features().values()))
    (labels,), _ = model.label_and_sample_anchors(anchors, [truth([0.0, 0.0, 40.0, 40.0])])
    inside = Boxes.cat(anchors).inside_box(SIZE, 0)
    assert (labels[~inside] == -1).all()
    assert (labels[inside] != -1).any()


def test_images_without_objects_train_the_classification_only() -> None:
    model = small_rpn()
    with EventStorage():
        _, losses = model(images(), features(), [truth(), truth()])
    sum(losses.values()).backward()
    assert losses["loss_rpn_loc"].item() == 0
    assert model.rpn_head.anchor_deltas.weight.grad.abs().sum() == 0
    assert model.rpn_head.objectness_logits.weight.grad.abs().sum() > 0


def test_training_needs_ground_truth() -> None:
    with EventStorage(), pytest.raises(AssertionError):
        small_rpn()(images(), features())


def test_head_with_several_convolutions() -> None:
    head = StandardRPNHead(in_channels=8, num_anchors=3, conv_dims=[16, -1])
    logits, deltas = head([torch.randn(1, 8, 5, 6)])
    assert logits[0].shape == (1, 3, 5, 6) and deltas[0].shape == (1, 12, 5, 6)
    assert {name: tuple(x.shape) for name, x in head.state_dict().items() if name.endswith("weight")} == {
        "conv.conv0.weight": (16, 8, 3, 3),
        "conv.conv1.weight": (16, 16, 3, 3),
        "objectness_logits.weight": (3, 16, 1, 1),
        "anchor_deltas.weight": (12, 16, 1, 1),
    }
    with pytest.raises((AssertionError, ValueError)):
        StandardRPNHead(in_channels=8, num_anchors=3, conv_dims=[0])


def test_settings_come_from_the_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.RPN.LOSS_WEIGHT, cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 2.0, 3.0
    cfg.MODEL.RPN.NMS_THRESH = 0.6
    cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 5
    model = build_proposal_generator(cfg, {"res4": ShapeSpec(channels=8, stride=16)})
    assert isinstance(model, RPN)
    assert model.loss_weight == {"loss_rpn_cls": 2.0, "loss_rpn_loc": 6.0}
    assert model.nms_thresh == 0.6 and model.min_box_size == 5
    assert model.pre_nms_topk == {True: 12000, False: 6000} and model.post_nms_topk == {True: 2000, False: 1000}
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, {}) is None


def test_ground_truth_is_appended_with_the_fields_of_the_proposals() -> None:
    proposals = Instances(
        SIZE,
        proposal_boxes=Boxes(torch.tensor([[0.0, 0.0, 5.0, 5.0]])),
        objectness_logits=torch.zeros(1),
        source=torch.tensor([7]),
    )
    target = truth([1.0, 2.0, 3.0, 4.0])
    target.gt_classes = torch.tensor([3])
    with pytest.raises(AssertionError, match="source"):
        add_ground_truth_to_proposals([target], [proposals])
    target.source = torch.tensor([9])
    (found,) = add_ground_truth_to_proposals([target], [proposals])
    assert found.proposal_boxes.tensor.tolist() == [[0.0, 0.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]]
    assert found.source.tolist() == [7, 9]
    assert not found.has("gt_classes")
    proposals.remove("source")
    (found,) = add_ground_truth_to_proposals([target.gt_boxes], [proposals])
    assert len(found) == 2
    assert not target.has("proposal_boxes")
