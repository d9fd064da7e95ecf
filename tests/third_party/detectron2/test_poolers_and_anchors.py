"""Pooling of boxes from a feature pyramid, and anchors."""

import pytest
import torch
from torch.testing import assert_close

from detectron2.config import get_cfg
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling import ROIPooler, build_anchor_generator
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.modeling.poolers import assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes


def square(side: float) -> list[float]:
    return [0, 0, side, side]


def test_level_follows_the_side_of_the_box():
    boxes = [Boxes([square(1), square(111), square(112)]), Boxes([square(223), square(225), square(448)])]
    assert assign_boxes_to_levels(boxes, 2, 5, 224, 4).tolist() == [0, 0, 1, 1, 2, 3]
    assert assign_boxes_to_levels(boxes, 3, 4, 224, 4).tolist() == [0, 0, 0, 0, 1, 1]
    assert assign_boxes_to_levels([Boxes([square(0)])], 2, 5, 224, 4).tolist() == [0]


def test_boxes_get_the_index_of_their_image():
    boxes = [Boxes([square(1)]), Boxes([]), Boxes([square(2), square(3)])]
    assert convert_boxes_to_pooler_format(boxes)[:, 0].tolist() == [0, 2, 2]
    assert convert_boxes_to_pooler_format([Boxes([])]).shape == (0, 5)


def pyramid(images: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, 3, 64 // stride, 64 // stride, generator=generator) for stride in (4, 8, 16)]


def test_each_box_comes_from_its_own_level_in_input_order():
    boxes = [Boxes([square(60), square(5), square(30)]), Boxes([square(29), square(61)])]
    pooler = ROIPooler(3, (1 / 4, 1 / 8, 1 / 16), 2, "ROIAlignV2", canonical_box_size=56, canonical_level=4)
    pooled = pooler(pyramid(), boxes)
    levels = assign_boxes_to_levels(boxes, 2, 4, 56, 4)
    assert levels.tolist() == [2, 0, 1, 1, 2]
    for row, (level, roi) in enumerate(zip(levels.tolist(), convert_boxes_to_pooler_format(boxes), strict=True)):
        single = ROIAlign((3, 3), 0.25 / 2**level, 2)(pyramid()[level], roi[None])
        assert_close(pooled[row], single[0])


def test_gradients_reach_every_level_in_use():
    features = [level.requires_grad_() for level in pyramid(1)]
    ROIPooler((2, 2), (1 / 4, 1 / 8, 1 / 16), 0, "ROIAlign")(
        features, [Boxes([square(5), square(120)])]
    ).sum().backward()
    assert features[0].grad.abs().sum() > 0 and features[1].grad.abs().sum() > 0
    assert features[2].grad.abs().sum() == 0


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2", "ROIPool"])
def test_no_boxes_give_no_rows(kind):
    pooler = ROIPooler(7, (1 / 4, 1 / 8, 1 / 16), 0, kind)
    features = [level.requires_grad_() for level in pyramid()]
    pooled = pooler(features, [Boxes([]), Boxes([])])
    assert pooled.shape == (0, 3, 7, 7)
    assert ROIPooler(7, (1 / 4,), 0, kind)(features[:1], [Boxes([]), Boxes([])]).shape == (0, 3, 7, 7)


def test_the_pooler_checks_its_arguments():
    pooler = ROIPooler(7, (1 / 4, 1 / 8, 1 / 16), 0, "ROIAlignV2")
    with pytest.raises(AssertionError):
        pooler(tuple(pyramid()), [Boxes([])] * 2)
    with pytest.raises(AssertionError):
        pooler(pyramid()[:2], [Boxes([])] * 2)
    with pytest.raises(AssertionError):
        pooler(pyramid(), [Boxes([])])


@pytest.mark.parametrize("scales", [(1 / 4, 1 / 16), (1 / 3,), (1 / 8, 1 / 4), (2.0, 1.0)])
def test_strides_must_double(scales):
    with pytest.raises((AssertionError, ValueError)):
        ROIPooler(7, scales, 0, "ROIAlignV2")


def test_unknown_pooler_and_sizes_are_refused():
    with pytest.raises(ValueError):
        ROIPooler(7, (1 / 4,), 0, "ROIAverage")
    with pytest.raises((AssertionError, ValueError)):
        ROIPooler((7, 7, 7), (1 / 4,), 0, "ROIAlign")
    with pytest.raises((AssertionError, ValueError)):
        ROIPooler(7, (1 / 4,), 0, "ROIAlign", canonical_box_size=0)


def test_anchors_by_hand():
    generator = DefaultAnchorGenerator(sizes=[[4, 8]], aspect_ratios=[[1.0, 4.0]], strides=[2], offset=0.5)
    assert generator.num_anchors == [4] and generator.box_dim == 4 and generator.num_cell_anchors == [4]
    anchors = generator([torch.zeros(1, 1, 2, 3)])[0].tensor.view(2, 3, 4, 4)
    assert anchors[0, 0].tolist() == [[-1, -1, 3, 3], [0, -3, 2, 5], [-3, -3, 5, 5], [-1, -7, 3, 9]]
    assert_close(anchors[1, 2], anchors[0, 0] + torch.tensor([4.0, 2, 4, 2]))


def test_one_list_serves_all_levels():
    wide = DefaultAnchorGenerator(sizes=[[16], [32]], aspect_ratios=[[0.5, 1.0]], strides=[8, 16])
    flat = DefaultAnchorGenerator(sizes=[[16], [32]], aspect_ratios=[0.5, 1.0], strides=[8, 16])
    features = [torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)]
    for first, second in zip(wide(features), flat(features), strict=True):
        assert_close(first.tensor, second.tensor)
    assert not wide.state_dict()  # anchors are no part of checkpoints


def test_anchor_generator_checks_its_arguments():
    with pytest.raises((AssertionError, ValueError)):
        DefaultAnchorGenerator(sizes=[[16], [32], [64]], aspect_ratios=[[1.0]], strides=[8, 16])
    with pytest.raises((AssertionError, ValueError)):
        DefaultAnchorGenerator(sizes=[[16]], aspect_ratios=[[1.0]], strides=[8], offset=1.0)


def test_anchor_generator_from_config():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64]]
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=8), ShapeSpec(stride=16)])
    assert isinstance(generator, DefaultAnchorGenerator) and generator.num_anchors == [3, 3]
    assert generator.strides == [8, 16] and generator.offset == 0.0
    assert "DefaultAnchorGenerator" in ANCHOR_GENERATOR_REGISTRY
