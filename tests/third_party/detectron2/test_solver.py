"""Parameter groups, gradient clipping and learning-rate schedules."""

import logging

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, CosineParamScheduler
from torch import nn
from torch.testing import assert_close

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import WarmupPolyLR
from detectron2.solver import (
    LRMultiplier,
    WarmupCosineLR,
    WarmupMultiStepLR,
    WarmupParamScheduler,
    build_lr_scheduler,
    get_default_optimizer_params,
)
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from detectron2.solver.lr_scheduler import _get_warmup_factor_at_iter


def config(**solver: object) -> CfgNode:
    cfg = get_cfg()
    for key, value in solver.items():
        cfg.merge_from_list([f"SOLVER.{key}", value])
    return cfg


def optimizer(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_every_trainable_parameter_is_in_one_group() -> None:
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.LayerNorm(3), shared, nn.Linear(3, 2).requires_grad_(False))
    groups = get_default_optimizer_params(net, base_lr=1.0, weight_decay=0.1, weight_decay_norm=0.0)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_overrides_win_over_norm_decay_and_rate_factor() -> None:
    net = nn.Sequential(nn.LayerNorm(2))
    groups = get_default_optimizer_params(
        net,
        base_lr=1.0,
        weight_decay=0.1,
        weight_decay_norm=0.2,
        lr_factor_func=lambda name: 0.5,
        overrides={"weight": {"weight_decay": 0.3, "lr": 7.0}},
    )
    settings = {len(g["params"]): (g["lr"], g["weight_decay"]) for g in groups if g["params"][0] is net[0].weight}
    assert settings == {1: (7.0, 0.3)}
    assert [(g["lr"], g["weight_decay"]) for g in groups if g["params"][0] is net[0].bias] == [(0.5, 0.2)]


def test_rate_factor_gets_full_names() -> None:
    names = []
    net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1, bias=False)))
    get_default_optimizer_params(net, base_lr=1.0, lr_factor_func=lambda name: names.append(name) or 1.0)
    assert names == ["0.weight", "0.bias", "1.0.weight"]


def test_bias_settings_conflict_with_an_override_of_bias() -> None:
    with pytest.raises(ValueError, match="Conflicting overrides for 'bias'"):
        get_default_optimizer_params(nn.Linear(1, 1), 1.0, weight_decay_bias=0.1, overrides={"bias": {"lr": 1.0}})


def test_a_rate_factor_of_biases_needs_a_rate() -> None:
    with pytest.raises(ValueError, match="bias_lr_factor requires base_lr"):
        get_default_optimizer_params(nn.Linear(1, 1), bias_lr_factor=2.0)


def test_groups_of_equal_settings_merge_in_order_of_appearance() -> None:
    a, b, c, d = (nn.Parameter(torch.zeros(1)) for _ in range(4))
    groups = reduce_param_groups(
        [{"params": [a, b], "lr": 1}, {"params": [c], "lr": 2}, {"params": [d], "lr": 1, "weight_decay": 0}]
        + [{"params": [b.detach()], "lr": 1}]
    )
    assert [len(group["params"]) for group in groups] == [3, 1, 1]


@pytest.mark.parametrize(("clip_type", "expected"), [("value", [0.5, 0.5]), ("norm", [0.3, 0.4])])
def test_a_clipping_class_clips_in_step(clip_type: str, expected: list[float]) -> None:
    cfg = config(**{"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_TYPE": clip_type})
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    cls = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    assert issubclass(cls, torch.optim.AdamW)
    assert cls.__name__ == "AdamWWithGradientClip"
    parameter = nn.Parameter(torch.zeros(2))
    without_gradient = nn.Parameter(torch.ones(1))
    clipping = cls([parameter, without_gradient], lr=0.1)
    parameter.grad = torch.tensor([3.0, 4.0])
    clipping.step()
    assert_close(parameter.grad, torch.tensor(expected))
    assert without_gradient.item() == 1


def test_without_clipping_the_optimizer_stays_as_it_is() -> None:
    sgd = optimizer()
    assert maybe_add_gradient_clipping(config(), sgd) is sgd
    assert type(sgd) is torch.optim.SGD


def test_unknown_clip_type() -> None:
    cfg = config(**{"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_TYPE": "layerwise"})
    with pytest.raises(ValueError, match="layerwise"):
        maybe_add_gradient_clipping(cfg, optimizer())


def test_linear_warmup_aims_at_the_schedule_where_it_ends() -> None:
    schedule = WarmupParamScheduler(CosineParamScheduler(1.0, 0.0), 0.1, 0.5)
    assert schedule(0.0) == pytest.approx(0.1)
    assert schedule(0.25) == pytest.approx((0.1 + 0.5) / 2)
    assert schedule(0.75) == CosineParamScheduler(1.0, 0.0)(0.75)
    rescaled = WarmupParamScheduler(CosineParamScheduler(1.0, 0.0), 0.1, 0.5, rescale_interval=True)
    assert rescaled(0.25) == pytest.approx((0.1 + 1.0) / 2)
    assert rescaled(0.75) == pytest.approx(CosineParamScheduler(1.0, 0.0)(0.5))


def test_unknown_warmup_method() -> None:
    with pytest.raises(ValueError, match="Unknown warmup method: '?cubic"):
        WarmupParamScheduler(CosineParamScheduler(1.0, 0.0), 0.1, 0.5, "cubic")
    with pytest.raises(ValueError, match="Unknown warmup method: '?cubic"):
        _get_warmup_factor_at_iter("cubic", 0, 10, 0.1)
    assert _get_warmup_factor_at_iter("cubic", 10, 10, 0.1) == 1.0


def test_multiplier_keeps_only_numbers_in_its_state() -> None:
    scheduler = LRMultiplier(optimizer(2.0), CosineParamScheduler(1.0, 0.0), max_iter=4)
    assert rates(scheduler, 3) == pytest.approx([2.0, 1.7071068, 1.0])
    assert scheduler.state_dict() == {"base_lrs": [2.0], "last_epoch": 3}
    resumed = LRMultiplier(optimizer(2.0), CosineParamScheduler(1.0, 0.0), max_iter=4)
    resumed.load_state_dict(scheduler.state_dict())
    rates(resumed, 1)
    rates(scheduler, 1)
    assert resumed.get_last_lr() == scheduler.get_last_lr() == pytest.approx([0.0])


def test_multiplier_needs_a_param_scheduler() -> None:
    with pytest.raises(ValueError, match="must be an instance of fvcore ParamScheduler"):
        LRMultiplier(optimizer(), lambda where: 1.0, max_iter=4)


def test_multiplier_applies_to_each_group() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 3.0)]
    sgd = torch.optim.SGD(groups, lr=1.0)
    LRMultiplier(sgd, ConstantParamScheduler(0.5), max_iter=2)
    assert [group["lr"] for group in sgd.param_groups] == [0.5, 1.5]


def test_steps_behind_the_end_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(STEPS=(2, 90), MAX_ITER=10, WARMUP_ITERS=0, BASE_LR=1.0)
    logging.getLogger("detectron2").propagate = True
    with caplog.at_level(logging.WARNING):
        scheduler = build_lr_scheduler(cfg, optimizer())
    assert "SOLVER.STEPS" in caplog.text
    assert rates(scheduler, 4) == pytest.approx([1.0, 1.0, 0.1, 0.1])


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="Unknown LR scheduler"):
        build_lr_scheduler(config(LR_SCHEDULER_NAME="Sawtooth"), optimizer())


def test_older_schedules_count_iterations() -> None:
    steps = WarmupMultiStepLR(optimizer(), [3, 5], 0.1, warmup_factor=0.5, warmup_iters=2)
    assert rates(steps, 7) == pytest.approx([0.5, 0.75, 1.0, 0.1, 0.1, 0.01, 0.01])
    cosine = WarmupCosineLR(optimizer(), 4, warmup_factor=0.5, warmup_iters=1, warmup_method="constant")
    assert rates(cosine, 5) == pytest.approx([0.5, 0.8535534, 0.5, 0.1464466, 0.0])
    with pytest.raises(ValueError, match="increasing integers"):
        WarmupMultiStepLR(optimizer(), [5, 3])


def test_polynomial_schedule_with_a_constant_ending() -> None:
    scheduler = WarmupPolyLR(optimizer(), 4, warmup_factor=0.1, warmup_iters=1, power=1.0, constant_ending=0.3)
    assert rates(scheduler, 5) == pytest.approx([0.1, 0.75, 0.5, 0.3, 0.3])
