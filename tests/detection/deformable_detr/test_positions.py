import math

import torch
from torch.testing import assert_close

from detection.deformable_detr.positions import (
    PositionEmbeddingSine,
    cell_centres,
    encode_boxes,
    inverse_sigmoid,
    padding_mask,
    valid_ratio,
)


def test_inverse_sigmoid_inverts_and_stays_finite():
    x = torch.tensor([0.1, 0.5, 0.9])
    assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert_close(inverse_sigmoid(torch.tensor([-1.0, 0, 1, 2])), math.log(1e5) * torch.tensor([-1.0, -1, 1, 1]))


def test_mask_covers_what_lies_outside_each_image():
    mask = padding_mask([(2, 3), (4, 1)], torch.zeros(2, 3, 4, 3))
    assert mask.sum(dim=(1, 2)).tolist() == [6, 8]
    assert not mask[0, :2].any() and not mask[1, :, 0].any()
    assert_close(valid_ratio(mask), torch.tensor([[1.0, 0.5], [1 / 3, 1.0]]))


def test_position_of_a_cell_is_relative_to_the_image_not_the_padding():
    embed = PositionEmbeddingSine(8)
    alone = embed(torch.zeros(1, 4, 6, dtype=torch.bool))
    padded = embed(padding_mask([(4, 6)], torch.zeros(1, 3, 7, 9)))
    assert_close(padded[..., :4, :6], alone)


def test_first_channels_are_sine_and_cosine_of_the_rows():
    embedded = PositionEmbeddingSine(4)(torch.zeros(1, 5, 3, dtype=torch.bool))
    y = (torch.arange(5) + 0.5) / 5 * 2 * math.pi
    expected = torch.stack([y.sin(), y.cos(), (y / 100).sin(), (y / 100).cos()])
    assert_close(embedded[0, :4, :, 1], expected, atol=1e-5, rtol=1e-5)


def test_boxes_are_encoded_number_by_number():
    boxes = torch.tensor([[0.0, 2.0, -2.0, 1.0]])
    encoded = encode_boxes(boxes, 16).view(4, 4)
    angle = boxes[0].sigmoid() * 2 * math.pi
    assert_close(encoded[:, 0], angle.sin())
    assert_close(encoded[:, 3], (angle / 100).cos())


def test_cell_centres_follow_each_levels_padding():
    ratios = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
    centres = cell_centres([(2, 2), (1, 1)], ratios)
    assert centres.shape == (1, 5, 2, 2)
    # The first cell of level 0 lies at (0.25, 0.25) of its map, so at (0.25, 0.5) of the image.
    assert_close(centres[0, 0, 0], torch.tensor([0.25, 0.25]))
    assert_close(centres[0, 0, 1], torch.tensor([0.125, 0.5]))
