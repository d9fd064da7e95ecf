"""Boxes, their formats and their overlaps."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2.structures import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection

XYXY, XYWH = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS


def some_boxes(count: int, seed: int = 0) -> Boxes:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    return Boxes(torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * 40), dim=1))


def test_modes_have_their_published_numbers():
    assert [mode.value for mode in BoxMode] == [0, 1, 2, 3, 4]
    assert [mode.name for mode in BoxMode] == ["XYXY_ABS", "XYWH_ABS", "XYXY_REL", "XYWH_REL", "XYWHA_ABS"]


def test_converting_to_the_same_mode_returns_the_same_object():
    for box in ([1, 2, 3, 4], torch.zeros(2, 4), np.zeros((2, 4))):
        assert BoxMode.convert(box, XYWH, XYWH) is box


def test_conversion_keeps_the_type_of_the_box():
    assert BoxMode.convert([1, 2, 3, 4], XYWH, XYXY) == [1, 2, 4, 6]
    assert isinstance(BoxMode.convert([1, 2, 3, 4], XYWH, XYXY)[0], int)
    assert BoxMode.convert((1.0, 2.0, 3.0, 4.0), XYWH, XYXY) == (1.0, 2.0, 4.0, 6.0)
    # Lists of floats pass through float32.
    assert BoxMode.convert([0.0, 0.0, 49.51, 1.0], XYWH, XYXY)[2] == pytest.approx(49.5099983, abs=1e-7)
    array = np.array([[1, 2, 3, 4]], dtype=np.float64)
    converted = BoxMode.convert(array, XYWH, XYXY)
    assert converted.dtype == np.float64 and converted.tolist() == [[1, 2, 4, 6]]
    assert array.tolist() == [[1, 2, 3, 4]]  # a copy
    tensor = torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64)
    assert BoxMode.convert(tensor, XYWH, XYXY).dtype == torch.float64
    assert tensor.tolist() == [[1, 2, 3, 4]]


def test_there_and_back_is_the_identity():
    boxes = some_boxes(20).tensor
    assert_close(BoxMode.convert(BoxMode.convert(boxes, XYXY, XYWH), XYWH, XYXY), boxes)


def test_relative_modes_do_not_convert():
    with pytest.raises((NotImplementedError, AssertionError)):
        BoxMode.convert([0.1, 0.1, 0.2, 0.2], BoxMode.XYXY_REL, XYXY)


def test_boxes_take_any_array_as_float32():
    assert Boxes([[1, 2, 3, 4]]).tensor.dtype == torch.float32
    assert Boxes(np.ones((3, 4), dtype=np.float64)).tensor.shape == (3, 4)
    assert Boxes(torch.ones(2, 4, dtype=torch.int64)).tensor.dtype == torch.float32
    for nothing in ([], np.zeros((0, 4)), torch.zeros(0), torch.zeros(0, 4)):
        assert Boxes(nothing).tensor.shape == (0, 4)
    for wrong in (torch.zeros(4), torch.zeros(2, 5)):
        with pytest.raises(AssertionError):
            Boxes(wrong)


def test_indexing_always_gives_boxes():
    boxes = some_boxes(5)
    assert boxes[1].tensor.tolist() == [boxes.tensor[1].tolist()]
    assert boxes[-1].tensor.tolist() == [boxes.tensor[4].tolist()]
    assert boxes[1:3].tensor.tolist() == boxes.tensor[1:3].tolist()
    assert boxes[torch.tensor([4, 0])].tensor.tolist() == boxes.tensor[[4, 0]].tolist()
    mask = torch.tensor([True, False, True, False, False])
    assert boxes[mask].tensor.tolist() == boxes.tensor[[0, 2]].tolist()
    assert len(boxes[mask & False]) == 0
    assert [box.shape for box in boxes] == [(4,)] * 5


def test_area_of_a_reversed_box_is_negative():
    assert Boxes([[0, 0, 2, 3], [5, 0, 4, 2]]).area().tolist() == [6, -2]


def test_clip_leaves_the_given_tensor_alone():
    given = torch.tensor([[-5.0, -6, 30, 40]])
    boxes = Boxes(given)
    boxes.clip((20, 25))
    assert boxes.tensor.tolist() == [[0, 0, 25, 20]]
    assert given.tolist() == [[-5, -6, 30, 40]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_clip_refuses_what_is_not_finite(value):
    with pytest.raises(AssertionError):
        Boxes([[0, 0, value, 1]]).clip((5, 5))


def test_scale_works_in_place():
    given = torch.tensor([[1.0, 2, 3, 4]])
    Boxes(given).scale(2, 10)
    assert given.tolist() == [[2, 20, 6, 40]]


def test_inside_box_is_closed_at_zero_and_open_at_the_far_side():
    boxes = Boxes([[0, 0, 9, 9], [0, 0, 10, 9], [-1, 0, 5, 5], [-3, 0, 5, 5]])
    assert boxes.inside_box((10, 10)).tolist() == [True, False, False, False]
    assert boxes.inside_box((10, 10), boundary_threshold=1).tolist() == [True, True, True, False]


def test_cat_joins_and_accepts_nothing():
    first, second = some_boxes(2), some_boxes(3, seed=1)
    joined = Boxes.cat([first, second])
    assert joined.tensor.tolist() == first.tensor.tolist() + second.tensor.tolist()
    assert Boxes.cat([]).tensor.shape == (0, 4)


def test_clone_is_independent():
    boxes = some_boxes(2)
    copy = boxes.clone()
    copy.scale(0, 0)
    assert boxes.tensor.abs().sum() > 0
    assert boxes.to("cpu").tensor.tolist() == boxes.tensor.tolist()
    assert boxes.device.type == "cpu"


def test_iou_equals_a_slow_loop():
    first, second = some_boxes(12), some_boxes(9, seed=1)
    expected = torch.zeros(12, 9)
    for i, (ax0, ay0, ax1, ay1) in enumerate(first.tensor.tolist()):
        for j, (bx0, by0, bx1, by1) in enumerate(second.tensor.tolist()):
            shared = max(min(ax1, bx1) - max(ax0, bx0), 0) * max(min(ay1, by1) - max(ay0, by0), 0)
            expected[i, j] = shared / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared)
    assert_close(pairwise_iou(first, second), expected)
    assert_close(matched_pairwise_iou(first[:9], second), expected.diagonal())
    assert_close(pairwise_iou(second, first), expected.t())


def test_overlap_of_empty_boxes_is_zero_not_nan():
    empty = Boxes([[5, 5, 5, 5]])
    assert pairwise_iou(empty, empty).tolist() == [[0]]
    assert pairwise_ioa(empty, empty).tolist() == [[0]]
    assert pairwise_iou(Boxes([]), some_boxes(3)).shape == (0, 3)
    assert pairwise_intersection(some_boxes(3), Boxes([])).shape == (3, 0)


def test_ioa_divides_by_the_second_area():
    assert pairwise_ioa(Boxes([[0, 0, 10, 10]]), Boxes([[5, 0, 15, 4]])).tolist() == [[0.5]]


def test_point_distances_are_positive_inside():
    distances = pairwise_point_box_distance(torch.tensor([[2.0, 3.0], [20.0, 3.0]]), Boxes([[0, 1, 10, 11]]))
    assert distances.tolist() == [[[2, 2, 8, 8]], [[20, 2, -10, 8]]]
