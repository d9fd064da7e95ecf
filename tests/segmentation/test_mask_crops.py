"""Crops of masks against cutting and resizing one at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from segmentation.mask_crops import crop_boxes, expand_boxes, resize_crops


def slow_box(mask: Tensor, ratio: float) -> list[int]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    height, width = mask.shape
    box = []
    for line, length in ((columns, width), (rows, height)):
        start, end = int(line.min()), int(line.max()) + 1
        centre, half = (start + end) / 2, (end - start) * ratio / 2
        box.append((max(int(centre - half), 0), min(int(centre + half), length)))
    (x1, x2), (y1, y2) = box
    return [x1, y1, x2, y2]


@pytest.mark.parametrize("ratio", [1.0, 1.3, 2.5])
def test_boxes_of_masks(ratio: float) -> None:
    masks = torch.rand(6, 13, 17, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[0], masks[1] = False, True
    masks[0, 12, 16] = True
    masks = masks[masks.flatten(1).any(1)]
    assert crop_boxes(masks, ratio).tolist() == [slow_box(mask, ratio) for mask in masks]


def test_a_box_keeps_a_pixel_however_much_it_shrinks() -> None:
    masks = torch.zeros(2, 5, 5, dtype=torch.bool)
    masks[0, 4, 4] = masks[1, 0, :] = True
    assert crop_boxes(masks, 0.01).tolist() == [[4, 4, 5, 5], [2, 0, 3, 1]]
    assert expand_boxes(torch.tensor([[4, 4, 5, 5]]), 3.0).tolist() == [[3, 3, 6, 6]]
    assert crop_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("side", [4, 24])
def test_crops_equal_cutting_and_resizing_each(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image, weights = torch.randn(3, 20, 31, generator=generator), torch.rand(4, 20, 31, generator=generator)
    boxes = torch.tensor([[0, 0, 31, 20], [3, 5, 4, 6], [10, 2, 30, 3], [7, 7, 19, 20]])
    outside = torch.tensor([0.5, -1.0, 2.0])
    found = resize_crops(image, weights, boxes, side, outside)
    for crop, weight, (x1, y1, x2, y2) in zip(found, weights, boxes.tolist(), strict=True):
        masked = (image * weight + outside[:, None, None] * (1 - weight))[None, :, y1:y2, x1:x2]
        assert_close(
            crop, F.interpolate(masked, (side, side), mode="bicubic", align_corners=False)[0], rtol=1e-4, atol=1e-4
        )


def test_no_mask_gives_no_crop() -> None:
    found = resize_crops(torch.zeros(3, 5, 5), torch.zeros(0, 5, 5), torch.zeros(0, 4).long(), 8, torch.zeros(3))
    assert found.shape == (0, 3, 8, 8)
