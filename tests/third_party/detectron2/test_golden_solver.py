"""Learning rates, parameter groups, gradient clipping and scaling of workers, as recorded."""

import ast
import re
from typing import Any

import pytest
import torch
from torch import nn

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_lr_scheduler
from detectron2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from tests.golden_files import Golden


def config(settings: list[str]) -> CfgNode:
    """The defaults with "KEY=VALUE" settings."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.merge_from_list([part for setting in settings for part in setting.split("=", 1)])
    return cfg


def close(expected: Any, golden: Golden) -> Any:
    return pytest.approx(expected, rel=float(golden.meta["tolerance"].split()[0]), abs=1e-12)


def check_rates(case: dict[str, Any], golden: Golden) -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in case["group_base_lrs"]]
    cfg = config(case["config"])
    optimizer = torch.optim.SGD(groups, lr=cfg.SOLVER.BASE_LR)
    build = build_deeplab_lr_scheduler if "deeplab" in case["builder"] else build_lr_scheduler
    scheduler = build(cfg, optimizer)
    steps_done = 0
    for iteration, *rates in case["rows"]:
        while steps_done < iteration:
            optimizer.step()
            steps_done += 1
            if steps_done == iteration and isinstance(rates[0], str):
                with pytest.raises(Exception) as raised:
                    scheduler.step()
                assert raised.type.__name__ == rates[0]
                return
            scheduler.step()
        assert [group["lr"] for group in optimizer.param_groups] == close(rates, golden), iteration


def build_net(description: str) -> nn.Module:
    """From "named modules: a = Linear(4,2) (also registered as "b"); c Linear(2,2) with requires_grad False"."""
    known = {**vars(nn), "Parameter": lambda *shape: nn.Parameter(torch.zeros(shape))}
    net = nn.Module()
    for part in description.split(": ", 1)[1].split("; "):
        name, _, rest = part.replace(" = ", " ", 1).partition(" ")
        rest, *alias = re.split(r' \(also registered as "(\w+)"\)', rest)
        expression, _, frozen = rest.partition(" with ")
        layer = eval(expression, {"__builtins__": {}}, known)
        if frozen:
            layer.requires_grad_(False)
        for each in (name, alias[0] if alias else None):
            if each:
                setattr(net, each, layer)
    return net


def named(groups: list[dict[str, Any]], net: nn.Module) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def check_groups(groups: list[dict[str, Any]], expected: list[dict[str, Any]], net: nn.Module, golden: Golden) -> None:
    assert named(groups, net) == [group["params"] for group in expected]
    for group, recorded in zip(groups, expected, strict=True):
        settings = {key: value for key, value in recorded.items() if key != "params"}
        assert {key: group[key] for key in settings} == close(settings, golden)


def default_params_arguments(text: str) -> dict[str, Any]:
    plain, _, factor = text.partition(", lr_factor_func = ")
    call = ast.parse(f"f({plain})", mode="eval").body
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    if factor:
        value, part = re.fullmatch(r"([\d.e-]+) when '(\w+)' in name", factor).groups()
        arguments["lr_factor_func"] = lambda name: float(value) if part in name else 1.0
    return arguments


def check_clipping(recorded: dict[str, Any], golden: Golden) -> None:
    lr = float(re.search(r"lr ([\d.]+)", recorded["optimizer"]).group(1))
    for case in recorded["cases"].values():
        gradients = [torch.tensor(values) for values in recorded["grads"]]
        parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer = torch.optim.SGD(parameters, lr=lr)
        assert maybe_add_gradient_clipping(config(case["config"]), optimizer) is optimizer
        assert type(optimizer).__name__ == case["class"]
        optimizer.step()
        for position, parameter in enumerate(parameters, start=1):
            assert parameter.flatten().tolist() == close(torch.tensor(case[f"p{position}"]).flatten().tolist(), golden)


def check_scaling(recorded: dict[str, Any], golden: Golden) -> None:
    cfg = get_cfg()
    given = dict(re.findall(r"([A-Z_]+) (\([^)]*\)|[^,]+)", recorded["in"]))
    cfg.merge_from_list([part for key, value in given.items() for part in (full_key(key), value)])
    scaled = DefaultTrainer.auto_scale_workers(cfg, recorded["workers"])
    for key, value in recorded["out"].items():
        section, name = full_key(key).split(".")
        found = scaled[section][name]
        assert (list(found) if isinstance(value, list) else found) == close(value, golden), key


def full_key(key: str) -> str:
    return f"TEST.{key}" if key == "EVAL_PERIOD" else f"SOLVER.{key}"


@pytest.mark.golden("d2_solver")
def test_solver_matches_recorded_numbers(golden: Golden) -> None:
    meta = golden.meta
    for case in meta["lr"].values():
        check_rates(case, golden)

    net = build_net(meta["net"])
    optimizer = build_optimizer(config(meta["build_optimizer"]["config"]), net)
    assert type(optimizer).__name__ == meta["build_optimizer"]["class"]
    check_groups(optimizer.param_groups, meta["build_optimizer"]["groups"], net, golden)
    groups = get_default_optimizer_params(net, **default_params_arguments(meta["default_params_args"]))
    check_groups(groups, meta["default_params"], net, golden)

    check_clipping(meta["gradient_clipping"], golden)
    check_scaling(meta["auto_scale_workers"], golden)
