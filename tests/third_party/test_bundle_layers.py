"""What the bundled structures and layers do beyond the real detectron2's: messages, precision, devices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from detectron2.layers import (
    DeformConv,
    FrozenBatchNorm2d,
    ModulatedDeformConv,
    NaiveSyncBatchNorm,
    ROIAlign,
    batched_nms,
    get_norm,
    paste_masks_in_image,
    roi_align,
)
from detectron2.layers.roi_align_cpu import _regions_at_a_time, pays, roi_align_by_rows
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
    pairwise_iou,
)


@pytest.mark.parametrize(
    "statement",
    [
        "from detectron2.structures import pairwise_iou_rotated",
        "from detectron2.structures import heatmaps_to_keypoints",
        "from detectron2.layers import ROIAlignRotated",
        "from detectron2.modeling.box_regression import Box2BoxTransformRotated",
        "from detectron2.modeling.anchor_generator import RotatedAnchorGenerator",
    ],
)
def test_what_is_left_out_says_where_it_is(statement):
    with pytest.raises(ImportError, match="needs the real detectron2"):
        exec(statement)


def test_stand_ins_import_but_cannot_be_made():
    for stand_in in (Keypoints, RotatedBoxes):
        with pytest.raises(NotImplementedError, match=stand_in.__name__):
            stand_in(torch.zeros(1, 5))
    with pytest.raises(NotImplementedError, match="ROIAlignRotated"):
        ROIPooler(7, (1 / 4,), 0, "ROIAlignRotated")
    with pytest.raises(NotImplementedError, match="XYWHA_ABS"):
        BoxMode.convert([0, 0, 1, 1, 30], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)


def two_fields() -> Instances:
    return Instances((4, 5), scores=torch.zeros(2), names=["a", "b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BoxMode.convert([1, 2, 3], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS), "3 numbers, expected 4 as XYWH_ABS"),
        (lambda: BoxMode.convert(torch.zeros(2, 5), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS), r"\(2, 5\).*\(\.\.\., 4\)"),
        (lambda: Boxes(torch.zeros(2, 3)), r"must be \(N, 4\), got \(2, 3\)"),
        (lambda: Boxes([[0, 0, float("nan"), 1]]).clip((3, 3)), "infinite or NaN"),
        (lambda: two_fields().set("more", [1]), "'more' has length 1, these Instances hold 2"),
        (lambda: two_fields().boxes, "no field 'boxes'.*fields are: scores, names"),
        (lambda: two_fields()[2], "index 2 is out of range for 2"),
        (lambda: Instances.cat([Instances((1, 1), a="x"), Instances((1, 1), a="y")]), "'a' of type str has no cat"),
        (lambda: Instances.cat([two_fields(), Instances((9, 9), scores=torch.zeros(1))]), "different sizes"),
        (lambda: ImageList.from_tensors([torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)]), "images of shapes"),
        (
            lambda: ImageList.from_tensors([torch.zeros(3, 40, 4)], padding_constraints={"square_size": 32}),
            "40 x 4 .* square_size 32",
        ),
        (lambda: BitMasks(torch.zeros(2, 3)), r"must be \(N, H, W\), got \(2, 3\)"),
        (lambda: PolygonMasks([[[1.0, 2, 3, 4]]]), "polygon of instance 0 .* at least 6"),
        (lambda: PolygonMasks([[[1.0] * 6], [[1.0] * 7]]), "polygon of instance 1 .* even number"),
        (lambda: PolygonMasks([{"a": 1}]), "instance 0 must be a list of polygons, got dict"),
        (lambda: PolygonMasks([[[1.0] * 6]])[torch.tensor([0.5])], "float32"),
        (lambda: get_norm("BatchNorm", 4), "NORM is 'BatchNorm'; expected .* FrozenBN"),
        (lambda: NaiveSyncBatchNorm(4, stats_mode="M"), "stats_mode is 'M'"),
        (lambda: NaiveSyncBatchNorm(4, affine=False), "needs momentum, track_running_stats and affine"),
        (lambda: DeformConv(5, 4, 3, groups=2), "do not divide by groups 2"),
        (lambda: Matcher([0.7, 0.3], [0, -1, 1]), "ascending"),
        (lambda: Matcher([0.5], [0, 1, 1]), "2 IOU_LABELS"),
        (lambda: Matcher([0.5], [0, 3]), "must be -1, 0 or 1"),
        (lambda: ROIPooler(7, (1 / 4, 1 / 16), 0, "ROIAlign"), "double from level to level, got 4, 16"),
        (lambda: ROIPooler(7, (1 / 4,), 0, "ROIAverage"), "POOLER_TYPE is 'ROIAverage'"),
        (
            lambda: DefaultAnchorGenerator(sizes=[[1], [2], [3]], aspect_ratios=[[1]], strides=[8, 16]),
            "SIZES has 3 lists for 2 feature maps",
        ),
        (lambda: DefaultAnchorGenerator(sizes=[], aspect_ratios=[[1]], strides=[8]), "SIZES must be a list"),
        (lambda: DefaultAnchorGenerator(sizes=[[1]], aspect_ratios=[[1]], strides=[8], offset=1), "OFFSET is 1"),
        (
            lambda: FrozenBatchNorm2d.convert_frozen_batchnorm(nn.BatchNorm2d(4, track_running_stats=False)),
            "cannot be frozen",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises((ValueError, AssertionError, AttributeError, IndexError), match=message):
        call()


def test_lists_are_indexed_like_tensors():
    instances = two_fields()
    assert instances[torch.tensor([True, False])].names == ["a"]
    assert instances[torch.tensor([1, 1, 0])].names == ["b", "b", "a"]


def test_whole_images_are_pasted_like_single_boxes(monkeypatch):
    """The path of accelerators, run on the CPU and in several chunks."""
    from detectron2.layers import mask_ops

    monkeypatch.setattr(mask_ops, "_CHUNK_BYTES", 3 * 30 * 36 * 12)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(7, 14, 14, generator=generator)
    corner = torch.rand(7, 2, generator=generator) * 30 - 5
    boxes = torch.cat((corner, corner + 0.5 + 20 * torch.rand(7, 2, generator=generator)), dim=1)
    boxes[2, 2:] = boxes[2, :2]  # no extent: nothing to see
    for threshold, kind in ((0.5, torch.bool), (0.7, torch.bool), (-1, torch.uint8)):
        whole = torch.zeros(7, 30, 36, dtype=kind)
        mask_ops._paste_whole_images(masks, boxes, whole, threshold)
        single = paste_masks_in_image(masks, boxes, (30, 36), threshold)
        assert single.dtype == kind
        if threshold > 0:
            assert (whole == single).all()
        assert not single[2].any() and not whole[2].any()
    # Grey levels agree on the box itself.
    x0, y0, x1, y1 = (round(side) for side in boxes[0].tolist())
    inside = (slice(max(y0, 0), y1), slice(max(x0, 0), x1))
    assert (whole[0][inside].int() - single[0][inside].int()).abs().max() <= 1


def test_modulated_convolution_runs_on_the_cpu():
    conv = ModulatedDeformConv(3, 5, 3, padding=1)
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    half = torch.full((2, 9, 6, 7), 0.5)
    expected = F.conv2d(x, conv.weight, padding=1) * 0.5 + conv.bias[:, None, None]
    assert_close(conv(x, torch.zeros(2, 18, 6, 7), half), expected, rtol=1e-4, atol=1e-5)
    empty = conv(torch.zeros(0, 3, 6, 7), torch.zeros(0, 18, 6, 7), torch.zeros(0, 9, 6, 7))
    assert empty.shape == (0, 5, 6, 7)
    empty.sum().backward()
    assert conv.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_regions_keep_exact_coordinates_in_half_precision(dtype):
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    rois = torch.tensor([[0.0, 801.5, 900.5, 817.5, 916.5]])  # bfloat16 would round these to multiples of 4
    pooled = ROIAlign((1, 1), 1 / 16, 2)(ramp.to(dtype), rois)
    assert pooled.dtype == dtype
    assert_close(pooled.float(), ROIAlign((1, 1), 1 / 16, 2)(ramp, rois), rtol=1e-2, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    bins=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    sampling_ratio=st.sampled_from([0, 0, 1, 2, 3]),
    aligned=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_regions_as_sums_of_rows_are_torchvision_s(shape, bins, sampling_ratio, aligned, seed):
    generator = torch.Generator().manual_seed(seed)
    images, height, width = shape
    features = torch.randn(images, 33, height, width, dtype=torch.float64, generator=generator)
    scale, limits = 1 / 8, torch.tensor([8.0 * width, 8 * height], dtype=torch.float64)
    middle, side = torch.rand(2, 70, 2, dtype=torch.float64, generator=generator)
    middle, side = (1.4 * middle - 0.2) * limits, side**3 * 1.2 * limits  # some are outside, some are tiny
    side[:3] = 0
    image = torch.randint(images, (70, 1), generator=generator)
    rois = torch.cat([image.double(), middle - side / 2, middle + side / 2], dim=1)
    rois[3, 3:] = rois[3, 1:3] - 9  # turned around
    rois[4, 1:] = torch.tensor([-8.0, -8, 16, 16])  # at the borders
    gradients = []
    for pool in (roi_align_by_rows, roi_align):
        own = features.clone().requires_grad_()
        pooled = pool(own, rois, bins, scale, sampling_ratio, aligned)
        factor = torch.linspace(0.5, 1.5, pooled.numel(), dtype=torch.float64).view_as(pooled)
        (pooled * factor).sum().backward()
        gradients.append((pooled.detach(), own.grad))
    for ours, expected in zip(*gradients, strict=True):
        assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_many_regions_of_wide_features_are_sums_of_rows_and_others_torchvision_s():
    features, box = torch.rand(1, 64, 30, 30), torch.tensor([[0.0, 3, 3, 100, 120]])
    many = box.repeat(16, 1)
    assert pays(features, many, (7, 7)) and pays(features.double(), many, (7, 7))
    assert not pays(features.half(), many, (7, 7)) and not pays(features[:, :8], many, (7, 7))
    assert not pays(features, box, (7, 7)) and not pays(torch.rand(1, 64, 300, 300), many, (7, 7))
    assert not pays(features, torch.full((16, 5), torch.nan), (7, 7))
    assert_close(ROIAlign(7, 1 / 4, 0)(features, many)[5], roi_align(features, box, (7, 7), 1 / 4, 0, True)[0])


def test_regions_that_reach_far_beyond_the_map_are_pooled_one_by_one():
    far = torch.tensor([[0.0, -3e6, -3e6, 3e6, 3e6]]).repeat(64, 1)
    assert _regions_at_a_time(far[:, 3:] - far[:, 1:3], (3, 3), (8, 8)) == 1
    assert _regions_at_a_time(torch.full((64, 2), 8.0), (3, 3), (8, 8)) == 64
    pooled = roi_align_by_rows(torch.ones(1, 32, 8, 8), far[:2], (3, 3), 1.0, 0, True)
    assert pooled[:, :, 1, 1].min() > 0 and pooled.sum() == pooled[:, :, 1, 1].sum()  # outside there is nothing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_pool_deform_and_compete(dtype):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(1, 4, side, side, generator=generator) for side in (16, 8)]
    boxes = [Boxes([[1.0, 2, 30, 40], [5, 6, 60, 61]])]
    halves = [each.to(dtype).requires_grad_() for each in features]
    for kind in ("ROIAlignV2", "ROIAlign", "ROIPool"):
        for levels in (2, 1):
            pooler = ROIPooler(3, (1 / 4, 1 / 8)[:levels], 0, kind, canonical_box_size=40, canonical_level=3)
            pooled = pooler(halves[:levels], boxes)
            assert pooled.dtype == dtype
            assert_close(pooled.float(), pooler(features[:levels], boxes), rtol=0.02, atol=0.02)
            pooled.float().sum().backward()
    assert batched_nms(boxes[0].tensor, torch.tensor([0.1, 0.2], dtype=dtype), torch.zeros(2), 0.9).tolist() == [1, 0]
    conv = DeformConv(4, 4, 3, padding=1)
    offset = torch.zeros(1, 18, 16, 16)
    deformed = conv(halves[0], offset.to(dtype))
    assert deformed.dtype == dtype
    assert_close(deformed.float(), conv(features[0], offset), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("strict", [True, False])
def test_the_counter_of_frozen_norms_is_never_reported(strict):
    with_counter, without = nn.BatchNorm2d(4).state_dict(), FrozenBatchNorm2d(4).state_dict()
    fresh, converted = FrozenBatchNorm2d(4), FrozenBatchNorm2d.convert_frozen_batchnorm(nn.BatchNorm2d(4))
    for norm, state in ((fresh, with_counter), (converted, without)):
        result = norm.load_state_dict(state, strict=strict)
        assert not result.missing_keys and not result.unexpected_keys


def test_iou_of_many_boxes_has_no_nan():
    boxes = Boxes(torch.rand(50, 4, generator=torch.Generator().manual_seed(0)))  # many are turned inside out
    assert torch.isfinite(pairwise_iou(boxes, boxes)).all()
