"""Parameter groups, clipping and errors of the optimisers; their steps are in the golden ``detic_data``."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detection.optimizer import build_custom_optimizer, build_optimizer
from detectron2.config import CfgNode
from prompt_pretrain.errors import InputError
from tests.detection.released_models import released_config


def solver(**settings: Any) -> CfgNode:
    cfg = released_config("Base-C2_L_R5021k_640b64_4x")
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    for name, value in settings.items():
        node = cfg.SOLVER.CLIP_GRADIENTS if name in cfg.SOLVER.CLIP_GRADIENTS else cfg.SOLVER
        setattr(node, name, value)
    return cfg


def module() -> nn.Module:
    result = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 3)})
    for i, parameter in enumerate(result.parameters()):
        parameter.grad = torch.full_like(parameter, i + 1.0)
    return result


def test_factors_multiply() -> None:
    cfg = solver(BASE_LR=1.0, BACKBONE_MULTIPLIER=0.1, CUSTOM_MULTIPLIER=0.5, CUSTOM_MULTIPLIER_NAME=["weight"])
    rates = [group["lr"] for group in build_custom_optimizer(cfg, module()).param_groups]
    assert rates == pytest.approx([0.05, 0.1, 0.5, 1.0])


def test_one_norm_over_all_gradients_is_clipped_in_step() -> None:
    cfg = solver(OPTIMIZER="SGD", BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0, ENABLED=True, CLIP_TYPE="full_model")
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    model = module()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    build_custom_optimizer(cfg, model).step()
    moved = torch.cat([(old - new).flatten() for old, new in zip(before, model.parameters(), strict=True)])
    assert_close(moved.norm(), torch.tensor(0.01), rtol=1e-4, atol=0)
    assert_close(moved[-1] / moved[0], torch.tensor(4.0), rtol=1e-3, atol=0)


def test_values_are_clipped_as_detectron2_does() -> None:
    cfg = solver(OPTIMIZER="SGD", BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0, ENABLED=True, CLIP_TYPE="value")
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 2.0
    model = module()
    optimizer = build_custom_optimizer(cfg, model)
    optimizer.step()
    assert [parameter.grad.max().item() for parameter in model.parameters()] == [1, 2, 2, 2]
    assert isinstance(optimizer, torch.optim.SGD)


def test_without_the_custom_solver_it_is_detectron2_s() -> None:
    optimizer = build_optimizer(solver(USE_CUSTOM_SOLVER=False, OPTIMIZER="SGD"), module())
    assert isinstance(optimizer, torch.optim.SGD)
    assert isinstance(build_optimizer(solver(), module()), torch.optim.AdamW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"USE_CUSTOM_SOLVER": False, "OPTIMIZER": "ADAMW"}, "SOLVER.OPTIMIZER ADAMW needs SOLVER.USE_CUSTOM_SOLVER"),
        (
            {"USE_CUSTOM_SOLVER": False, "OPTIMIZER": "SGD", "BACKBONE_MULTIPLIER": 0.1},
            "SOLVER.BACKBONE_MULTIPLIER 0.1 needs",
        ),
        (
            {"USE_CUSTOM_SOLVER": False, "OPTIMIZER": "SGD", "ENABLED": True, "CLIP_TYPE": "full_model"},
            "CLIP_TYPE full_model needs",
        ),
        ({"OPTIMIZER": "ADAM"}, "SOLVER.OPTIMIZER is 'ADAM'; expected SGD or ADAMW"),
        ({"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 0.0}, "CLIP_VALUE is 0.0; it must be greater"),
    ],
)
def test_settings_that_would_be_ignored_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_optimizer(solver(**settings), module())


def test_a_frozen_model_is_an_error() -> None:
    with pytest.raises(InputError, match="no parameter of the model is trainable"):
        build_custom_optimizer(solver(), module().requires_grad_(False))
