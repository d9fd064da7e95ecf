"""The best class of each pixel against torch's, bit by bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmentation.class_argmax import argmax_over_classes, max_over_classes

VALUES = [-math.inf, -1.0, -0.0, 0.0, 1e-40, 2.0, math.inf, math.nan]


@settings(max_examples=40, deadline=None)
@given(
    num_classes=st.sampled_from([1, 2, 3, 17, 64, 65, 130, 600]),
    pixels=st.integers(1, 300),
    values=st.lists(st.sampled_from(VALUES), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32]),
    threads=st.sampled_from([1, 2, 3, 7]),
    seed=st.integers(0, 99),
)
def test_it_is_torch_s_with_ties_and_nan(num_classes, pixels, values, dtype, threads, seed):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        choice = torch.randint(len(values), (num_classes, pixels), generator=torch.Generator().manual_seed(seed))
        table = torch.tensor(values)
        if not dtype.is_floating_point:
            table = table.nan_to_num(7).clamp(-9, 9)
        scores = table.to(dtype)[choice]
        found, labels = max_over_classes(scores)
        expected = scores.max(0)
        assert labels.dtype == torch.int64 and torch.equal(labels, expected.indices)
        assert torch.equal(labels, scores.argmax(0))
        assert found.dtype == dtype and torch.equal(found.nan_to_num(99), expected.values.nan_to_num(99))
    finally:
        torch.set_num_threads(before)


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
