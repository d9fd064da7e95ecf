"""The best class of each pixel against torch's, bit by bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmentation import class_argmax
from segmentation.class_argmax import argmax_over_classes, max_over_classes

VALUES = [-math.inf, -1.0, -0.0, 0.0, 1e-40, 2.0, math.inf, math.nan]


@settings(max_examples=30, deadline=None)
@given(
    num_classes=st.sampled_from([1, 2, 3, 17, 255, 256, 257, 600]),
    pixels=st.integers(1, 300),
    values=st.lists(st.sampled_from(VALUES), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_it_is_torch_s_with_ties_and_nan(num_classes, pixels, values, dtype, seed):
    before = class_argmax._PIXELS, class_argmax._FEW_PIXELS
    class_argmax._PIXELS, class_argmax._FEW_PIXELS = 64, 1
    try:
        choice = torch.randint(len(values), (num_classes, pixels), generator=torch.Generator().manual_seed(seed))
        scores = torch.tensor(values, dtype=dtype)[choice]
        found, labels = max_over_classes(scores)
        expected = scores.max(0)
        assert labels.dtype == torch.int64 and torch.equal(labels, expected.indices)
        assert torch.equal(labels, scores.argmax(0))
        assert found.dtype == dtype and torch.equal(found.nan_to_num(99), expected.values.nan_to_num(99))
    finally:
        class_argmax._PIXELS, class_argmax._FEW_PIXELS = before


@pytest.mark.parametrize("shape", [(300, 160, 170), (5, 400, 400), (7, 3, 4)])
def test_whole_maps_and_their_parts(shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    original = scores.detach().clone()
    assert torch.equal(argmax_over_classes(scores), scores.argmax(0))
    part = scores[:, 1:, :-1]  # not in one piece
    assert torch.equal(argmax_over_classes(part), part.argmax(0))
    assert torch.equal(scores, original)


def test_no_class_at_all_is_torch_s_error():
    with pytest.raises(IndexError):
        argmax_over_classes(torch.zeros(0, 200, 200))
