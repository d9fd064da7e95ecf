"""Convolutions with norm and activation, ASPP, NMS, ROIAlign, deformable convolution and box losses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from detectron2.layers import (
    ASPP,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    DeformConv,
    DepthwiseSeparableConv2d,
    Linear,
    ModulatedDeformConv,
    ROIAlign,
    ShapeSpec,
    batched_nms,
    cat,
    ciou_loss,
    cross_entropy,
    diou_loss,
    get_norm,
    interpolate,
    move_device_like,
    nms,
    nonzero_tuple,
    roi_align,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_shape_spec_knows_nothing_by_default():
    assert ShapeSpec() == ShapeSpec(channels=None, height=None, width=None, stride=None)
    assert ShapeSpec(channels=3, stride=4).stride == 4


def test_conv_applies_norm_and_activation():
    conv = Conv2d(3, 4, 3, padding=1, bias=False, norm=get_norm("BN", 4), activation=F.relu)
    assert list(conv.state_dict())[:3] == ["weight", "norm.weight", "norm.bias"]
    x = random(2, 3, 5, 6)
    assert_close(conv(x), F.relu(conv.norm(F.conv2d(x, conv.weight, padding=1))))
    assert isinstance(conv, nn.Conv2d)
    plain = Conv2d(3, 4, 1)
    assert_close(plain(x), F.conv2d(x, plain.weight, plain.bias))


def test_conv_takes_an_empty_batch():
    conv = Conv2d(3, 4, 3, stride=2, norm=get_norm("FrozenBN", 4), activation=F.relu)
    result = conv(torch.zeros(0, 3, 9, 9))
    assert result.shape == (0, 4, 4, 4)
    result.sum().backward()


def test_names_of_torch():
    assert issubclass(ConvTranspose2d, nn.ConvTranspose2d)
    assert issubclass(BatchNorm2d, nn.BatchNorm2d) and issubclass(Linear, nn.Linear)
    assert interpolate(random(1, 1, 4, 4), scale_factor=2).shape == (1, 1, 8, 8)


def test_cat_of_one_does_not_copy():
    x = random(2, 3)
    assert cat([x]) is x
    assert cat([x, x], dim=1).shape == (2, 6)


def test_nonzero_tuple_and_move_device_like():
    assert [index.tolist() for index in nonzero_tuple(torch.eye(2))] == [[0, 1], [0, 1]]
    assert move_device_like(torch.ones(1), torch.zeros(1)).device.type == "cpu"


def test_cross_entropy_of_nothing_is_a_differentiable_zero():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 5)
    assert cross_entropy(logits, torch.zeros(0, dtype=torch.int64), reduction="sum").item() == 0
    target = torch.tensor([1, 4, 0])
    assert_close(cross_entropy(random(3, 5), target), F.cross_entropy(random(3, 5), target))
    weight = torch.arange(5.0)
    assert_close(
        cross_entropy(random(3, 5), target, reduction="none", weight=weight),
        F.cross_entropy(random(3, 5), target, reduction="none", weight=weight),
    )


def test_depthwise_separable_convolution_is_two_convolutions():
    conv = DepthwiseSeparableConv2d(4, 6, norm1="BN", activation1=F.relu, norm2="", activation2=F.relu)
    shapes = {name: tuple(value.shape) for name, value in conv.named_parameters()}
    assert shapes == {
        "depthwise.weight": (4, 1, 3, 3),
        "depthwise.norm.weight": (4,),
        "depthwise.norm.bias": (4,),
        "pointwise.weight": (6, 4, 1, 1),
        "pointwise.bias": (6,),
    }
    x = random(2, 4, 7, 7)
    expected = F.relu(conv.pointwise(F.relu(conv.depthwise(x))))
    assert_close(conv.eval()(x), conv.pointwise(conv.depthwise(x)))
    assert conv(x).shape == expected.shape == (2, 6, 7, 7)


@pytest.mark.parametrize("separable", [False, True])
def test_aspp_keeps_the_size(separable):
    aspp = ASPP(8, 4, [2, 4, 6], norm="BN", activation=F.relu, use_depthwise_separable_conv=separable)
    aspp.eval()
    assert aspp(random(2, 8, 12, 10)).shape == (2, 4, 12, 10)
    assert aspp.project.in_channels == 20 and len(aspp.convs) == 5
    assert "convs.4.1.weight" in aspp.state_dict() and "convs.0.norm.weight" in aspp.state_dict()
    # The pooled view is the same everywhere.
    pooled = aspp.convs[4](random(2, 8, 12, 10))
    assert pooled.shape == (2, 4, 1, 1)


def test_aspp_with_a_pooling_window_needs_fitting_sizes():
    aspp = ASPP(8, 4, [1, 2, 3], norm="", activation=F.relu, pool_kernel_size=(4, 5), dropout=0.1).eval()
    assert aspp(random(1, 8, 8, 10)).shape == (1, 4, 8, 10)
    with pytest.raises(ValueError):
        aspp(random(1, 8, 9, 10))


def test_aspp_takes_three_dilations():
    with pytest.raises((AssertionError, ValueError)):
        ASPP(8, 4, [1, 2], norm="", activation=F.relu)


def test_boxes_suppress_only_their_own_group():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.1])
    assert nms(boxes, scores, 0.5).tolist() == [1, 3]
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1, 1]), 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes.double(), scores, torch.tensor([0, 0, 0, 0]), 0.5).tolist() == [1, 3]
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5).shape == (0,)


def test_aligned_pooling_of_a_ramp_gives_the_bin_centres():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # the value at pixel centre x + 0.5 is x
    rois = torch.tensor([[0.0, 4, 4, 12, 12]])
    aligned = ROIAlign((2, 2), 1.0, 0, aligned=True)(ramp, rois)
    assert_close(aligned[0, 0], torch.tensor([[5.5, 9.5], [5.5, 9.5]]))
    shifted = ROIAlign((2, 2), 1.0, 0, aligned=False)(ramp, rois)
    assert_close(shifted[0, 0], torch.tensor([[6.0, 10.0], [6.0, 10.0]]))
    assert_close(roi_align(ramp, rois, (2, 2), 1.0, 0, True), aligned)


def test_regions_below_a_cell_grow_only_unaligned():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    rois = torch.tensor([[0.0, 4, 4, 4, 4]])
    assert_close(ROIAlign((2, 2), 1.0, 2, aligned=False)(ramp, rois)[0, 0, 0], torch.tensor([4.25, 4.75]))
    assert_close(ROIAlign((2, 2), 1.0, 2, aligned=True)(ramp, rois)[0, 0, 0], torch.tensor([3.5, 3.5]))


def test_roi_align_takes_no_regions_and_refuses_malformed_ones():
    features = random(2, 3, 8, 8).requires_grad_()
    pooled = ROIAlign((7, 7), 0.25, 0)(features, torch.zeros(0, 5))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    with pytest.raises(AssertionError):
        ROIAlign((7, 7), 0.25, 0)(features, torch.zeros(3, 4))


def test_without_offsets_a_deformable_convolution_is_a_convolution():
    x = random(2, 4, 7, 8)
    conv = DeformConv(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, deformable_groups=2)
    expected = F.conv2d(x, conv.weight, None, stride=2, padding=1, dilation=2, groups=2)
    offset = torch.zeros(2, 36, *expected.shape[-2:])
    assert_close(conv(x, offset), expected, rtol=1e-4, atol=1e-5)
    assert list(conv.state_dict()) == ["weight"]


def test_offsets_shift_rows_first():
    x = random(1, 1, 6, 6)
    conv = DeformConv(1, 1, 1)
    offset = torch.zeros(1, 2, 6, 6)
    offset[:, 0] = 1  # dy
    shifted = F.pad(x[:, :, 1:], (0, 0, 0, 1)) * conv.weight
    assert_close(conv(x, offset), shifted)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the compiled modulated convolution runs on CUDA only")
def test_modulation_scales_the_result():
    conv = ModulatedDeformConv(3, 5, 3, padding=1).cuda()
    nn.init.normal_(conv.bias)
    x = random(2, 3, 6, 7).cuda()
    half = x.new_full((2, 9, 6, 7), 0.5)
    expected = F.conv2d(x, conv.weight, padding=1) * 0.5 + conv.bias[:, None, None]
    assert_close(conv(x, x.new_zeros(2, 18, 6, 7), half), expected, rtol=1e-4, atol=1e-5)


def test_deformable_convolutions_have_their_published_entries():
    assert list(DeformConv(2, 2, 3, norm=get_norm("FrozenBN", 2)).state_dict())[:2] == ["weight", "norm.weight"]
    assert list(ModulatedDeformConv(2, 2, 3).state_dict()) == ["weight", "bias"]
    assert list(ModulatedDeformConv(2, 2, 3, bias=False).state_dict()) == ["weight"]
    with pytest.raises(AssertionError):
        DeformConv(2, 2, 3, bias=True)


def test_a_deformable_convolution_takes_an_empty_batch():
    conv = DeformConv(4, 6, 3, stride=2, padding=1, norm=get_norm("FrozenBN", 6), activation=F.relu)
    assert conv(torch.zeros(0, 4, 9, 11), torch.zeros(0, 18, 5, 6)).shape == (0, 6, 5, 6)


@pytest.mark.parametrize("loss", [diou_loss, ciou_loss])
def test_distance_losses_vanish_for_equal_boxes_and_exceed_iou_loss(loss):
    boxes = torch.tensor([[0.0, 0, 4, 2], [1, 1, 3, 5]])
    assert_close(loss(boxes, boxes), torch.zeros(2), atol=1e-5, rtol=0)
    apart = boxes + 10
    assert (loss(boxes, apart) > 1).all()
    assert_close(loss(boxes, apart, reduction="sum"), loss(boxes, apart).sum())
    assert_close(loss(boxes, apart, reduction="mean"), loss(boxes, apart).mean())
    none = loss(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4), reduction="sum")
    assert none.item() == 0


def test_diou_of_a_hand_computed_pair():
    # No overlap; centres 4 apart; the enclosing box has a diagonal of 6² + 2².
    loss = diou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[4.0, 0, 6, 2]]))
    assert_close(loss, torch.tensor([1 + 16 / 40]))
