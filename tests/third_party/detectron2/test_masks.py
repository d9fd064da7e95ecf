"""Bit masks, polygons, masks of regions, and pasting."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, PolygonMasks, ROIMasks, polygons_to_bitmask

SQUARE = [2.0, 3, 6, 3, 6, 9, 2, 9]  # x 2..6, y 3..9
FAR = [10.0, 10, 14, 10, 14, 12, 10, 12]


def test_polygons_become_bitmaps():
    bitmap = polygons_to_bitmask([np.array(SQUARE), np.array(FAR)], 12, 16)
    expected = np.zeros((12, 16), dtype=bool)
    expected[3:9, 2:6] = True
    expected[10:12, 10:14] = True
    assert bitmap.dtype == bool and (bitmap == expected).all()
    assert polygons_to_bitmask([], 4, 5).shape == (4, 5)
    assert not polygons_to_bitmask([], 4, 5).any()


def bit_masks() -> BitMasks:
    masks = torch.zeros(3, 12, 16)
    masks[0, 3:9, 2:6] = 1
    masks[2, 11, 15] = 7
    return BitMasks(masks)


def test_tight_boxes_end_one_past_the_last_pixel():
    assert bit_masks().get_bounding_boxes().tensor.tolist() == [[2, 3, 6, 9], [0, 0, 0, 0], [15, 11, 16, 12]]
    assert bit_masks().nonempty().tolist() == [True, False, True]
    assert BitMasks(torch.zeros(0, 4, 4)).get_bounding_boxes().tensor.shape == (0, 4)


def test_bit_masks_index_and_join():
    masks = bit_masks()
    assert masks.image_size == (12, 16) and len(masks) == 3 and masks.tensor.dtype == torch.bool
    assert masks[0].tensor.shape == (1, 12, 16)
    assert masks[1:].tensor.shape == (2, 12, 16)
    assert masks[masks.nonempty()].tensor.sum(dim=(1, 2)).tolist() == [24, 1]
    assert masks[torch.tensor([2, 0])].tensor.sum(dim=(1, 2)).tolist() == [1, 24]
    assert [mask.shape for mask in masks] == [(12, 16)] * 3
    assert len(BitMasks.cat([masks, masks[0]])) == 4
    assert masks.to("cpu").device.type == "cpu"
    assert BitMasks(np.ones((2, 3, 4), dtype=np.uint8)).tensor.all()
    with pytest.raises(AssertionError):
        BitMasks(torch.zeros(3, 4))


def test_bit_masks_from_polygons():
    masks = BitMasks.from_polygon_masks([[np.array(SQUARE)], [np.array(FAR)]], 12, 16)
    assert masks.tensor.sum(dim=(1, 2)).tolist() == [24, 8]
    same = BitMasks.from_polygon_masks(PolygonMasks([[SQUARE], [FAR]]), 12, 16)
    assert (same.tensor == masks.tensor).all()


def test_cropping_a_mask_by_its_own_box_fills_the_crop():
    boxes = torch.tensor([[2.0, 3, 6, 9], [0, 0, 4, 4], [0, 3, 4, 9]])
    crop = bit_masks().crop_and_resize(boxes, 8)
    assert crop.shape == (3, 8, 8) and crop.dtype == torch.bool
    assert crop[0].all() and not crop[1].any()
    assert not BitMasks(torch.zeros(0, 4, 4)).crop_and_resize(torch.zeros(0, 4), 8).any()
    with pytest.raises(AssertionError):
        bit_masks().crop_and_resize(boxes[:1], 8)


def polygon_masks() -> PolygonMasks:
    return PolygonMasks([[np.array(SQUARE), np.array(FAR)], [], [FAR]])


def test_polygon_masks_measure_themselves():
    masks = polygon_masks()
    assert len(masks) == 3 and masks.nonempty().tolist() == [True, False, True]
    assert masks.area().tolist() == [32, 0, 8]
    assert masks.get_bounding_boxes().tensor[[0, 2]].tolist() == [[2, 3, 14, 12], [10, 10, 14, 12]]
    assert masks.polygons[0][0].dtype == np.float64
    assert masks.to("cuda:0") is masks and masks.device.type == "cpu"  # polygons never leave the CPU


def test_box_of_a_polygon_left_of_the_image_ends_at_zero():
    masks = PolygonMasks([[[-9.0, -8, -4, -8, -4, -2]]])
    assert masks.get_bounding_boxes().tensor.tolist() == [[-9, -8, 0, 0]]


@pytest.mark.parametrize(
    ("item", "rows"),
    [
        (2, [2]),
        (slice(0, 2), [0, 1]),
        ([2, 0], [2, 0]),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([False, False, False]), []),
    ],
)
def test_polygon_masks_index(item, rows):
    masks = polygon_masks()
    chosen = masks[item]
    assert isinstance(chosen, PolygonMasks)
    assert [len(parts) for parts in chosen] == [len(masks.polygons[row]) for row in rows]


def test_polygon_masks_join():
    joined = PolygonMasks.cat([polygon_masks(), polygon_masks()[0]])
    assert [len(parts) for parts in joined] == [2, 0, 1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": []},
        [np.array(SQUARE)],
        [[[1.0, 2, 3, 4]]],
        [[[1.0, 2, 3, 4, 5, 6, 7]]],
    ],
)
def test_wrong_polygons_are_refused(wrong):
    with pytest.raises(ValueError):
        PolygonMasks(wrong)


def test_cropping_a_polygon_equals_rasterising_it_in_the_box():
    boxes = torch.tensor([[2.0, 3, 6, 9], [0, 0, 5, 5], [8.0, 8, 16, 16]])
    crop = polygon_masks().crop_and_resize(boxes, 16)
    assert crop.dtype == torch.bool and crop.shape == (3, 16, 16)
    assert crop[0].all() and not crop[1].any()
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 4:12] = True  # the box is 8 pixels wide, so the target has twice the resolution
    assert (crop[2] == expected).all()


def test_a_box_without_area_gives_a_finite_crop():
    crop = PolygonMasks([[SQUARE]]).crop_and_resize(torch.tensor([[4.0, 4, 4, 4]]), 14)
    assert crop.all()  # magnified so far that only the inside is seen


def slow_paste(mask: torch.Tensor, box: list[float], height: int, width: int) -> torch.Tensor:
    """Values of one mask at all pixels, by the generic sampler."""
    x0, y0, x1, y1 = box
    x = ((torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1)[None, :].expand(height, width)
    y = ((torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1)[:, None].expand(height, width)
    return F.grid_sample(mask[None, None], torch.stack((x, y), dim=-1)[None], align_corners=False)[0, 0]


BOXES = [
    [3.2, 4.7, 20.1, 17.9],
    [-6.0, -3.5, 9.0, 40.0],
    [25.0, 10.0, 60.0, 50.0],
    [7.3, 7.2, 8.1, 8.4],
    [50, 50, 60, 60],
]


@pytest.mark.parametrize("size", [1, 4, 28])
def test_pasted_masks_equal_generic_sampling(size):
    masks = torch.rand(len(BOXES), size, size, generator=torch.Generator().manual_seed(3))
    pasted = paste_masks_in_image(masks, torch.tensor(BOXES), (30, 36), threshold=0.5)
    assert pasted.dtype == torch.bool and pasted.shape == (len(BOXES), 30, 36)
    for mask, box, result in zip(masks, BOXES, pasted, strict=True):
        expected = slow_paste(mask, box, 30, 36)
        clear = (expected - 0.5).abs() > 1e-5
        assert (result == (expected >= 0.5))[clear].all()


def test_negative_threshold_gives_grey_levels():
    mask = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(3))
    pasted = paste_masks_in_image(mask, Boxes([BOXES[0]]), (30, 36), threshold=-1)
    assert pasted.dtype == torch.uint8
    expected = slow_paste(mask[0], BOXES[0], 30, 36) * 255
    assert_close(pasted[0, 5:17, 4:20].float(), expected[5:17, 4:20] - 0.5, atol=0.51, rtol=0)


def test_pasting_follows_the_box():
    ones = torch.ones(1, 14, 14)
    pasted = paste_masks_in_image(ones, torch.tensor([[4.0, 6, 10, 9]]), (12, 16))[0]
    expected = torch.zeros(12, 16, dtype=torch.bool)
    expected[6:9, 4:10] = True
    assert (pasted == expected).all()
    whole_numbers = paste_masks_in_image(ones.to(torch.uint8), torch.tensor([[4.0, 6, 10, 9]]), (12, 16))[0]
    assert (whole_numbers == expected).all()


def test_pasting_nothing_gives_uint8():
    pasted = paste_masks_in_image(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6))
    assert pasted.shape == (0, 5, 6) and pasted.dtype == torch.uint8


def test_pasting_checks_its_arguments():
    with pytest.raises(AssertionError):
        paste_masks_in_image(torch.zeros(1, 28, 27), torch.zeros(1, 4), (5, 6))
    with pytest.raises(AssertionError):
        paste_masks_in_image(torch.zeros(2, 28, 28), torch.zeros(1, 4), (5, 6))


def test_roi_masks_become_bit_masks():
    masks = ROIMasks(torch.ones(2, 14, 14))
    boxes = Boxes([[4.0, 6, 10, 9], [0, 0, 3, 3]])
    bitmaps = masks.to_bitmasks(boxes, 12, 16, 0.5)
    assert isinstance(bitmaps, BitMasks) and bitmaps.get_bounding_boxes().tensor.tolist() == boxes.tensor.tolist()
    assert len(masks[torch.tensor([True, False])]) == 1 and len(masks) == 2
    assert masks.to("cpu").device.type == "cpu"
    with pytest.raises(ValueError):
        ROIMasks(torch.ones(2, 1, 14, 14))
