import math

import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain.config import load_cfg
from prompt_pretrain.optimisation import build_sgd, learning_rate, learning_rate_from_cfg, set_learning_rate


def test_published_schedule_of_five_epochs():
    optim = load_cfg(None, ["OPTIM.MAX_EPOCH", "5"]).OPTIM
    rates = [learning_rate_from_cfg(epoch, optim) for epoch in range(5)]
    assert rates == pytest.approx([1e-5, 0.002, 0.001809017, 0.001309017, 0.000690983], rel=1e-6)


@pytest.mark.parametrize("warmup_epoch", [0, -1])
def test_no_warm_up_starts_at_the_base_rate(warmup_epoch):
    rates = [learning_rate(e, base_lr=2.0, max_epoch=4, warmup_epoch=warmup_epoch) for e in range(4)]
    assert rates == pytest.approx([1 + math.cos(math.pi * e / 4) for e in range(4)])


def test_linear_warm_up_climbs_to_the_base_rate():
    settings = {"base_lr": 0.4, "max_epoch": 10, "warmup_epoch": 4, "warmup_type": "linear", "warmup_min_lr": 1e-3}
    assert [learning_rate(e, **settings) for e in range(5)] == pytest.approx([1e-3, 0.1, 0.2, 0.3, 0.4])


def test_without_recount_the_cosine_has_run_during_the_warm_up():
    settings = {"base_lr": 2.0, "max_epoch": 10, "warmup_epoch": 3}
    assert learning_rate(3, **settings) == 2.0
    assert learning_rate(3, **settings, warmup_recount=False) == pytest.approx(1 + math.cos(0.3 * math.pi))


def test_sgd_matches_momentum_and_decay_worked_by_hand():
    ctx = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    sgd = build_sgd([ctx], momentum=0.5, weight_decay=0.1)
    value, velocity = ctx.detach().clone(), torch.zeros(2)
    for rate, gradient in [(0.1, torch.tensor([1.0, 3.0])), (0.2, torch.tensor([-1.0, 0.5]))]:
        ctx.grad = gradient.clone()
        set_learning_rate(sgd, rate)
        sgd.step()
        velocity = 0.5 * velocity + gradient + 0.1 * value
        value = value - rate * velocity
        assert_close(ctx.detach(), value)
