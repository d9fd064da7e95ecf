"""Clipping of the whole gradient."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from prompt_pretrain.errors import InputError
from prompt_pretrain.gradient_clipping import clipping_whole_gradient


def test_small_gradients_are_left_alone_and_large_ones_scaled():
    model = nn.Linear(2, 2)
    optimizer = clipping_whole_gradient(torch.optim.SGD, 5.0)(model.parameters(), lr=1.0)
    assert type(optimizer).__name__ == "SGDWithFullModelClip"
    for value, moved in ((1.0, 1.0), (100.0, 5.0 / 6**0.5)):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.step()
        for old, new in zip(before, model.parameters(), strict=True):
            assert_close(old - new, torch.full_like(new, moved), atol=1e-4, rtol=0)


def test_limit_must_be_positive():
    with pytest.raises(InputError, match="CLIP_VALUE is 0; it must be greater than 0"):
        clipping_whole_gradient(torch.optim.SGD, 0)
