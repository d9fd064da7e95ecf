"""Optimisers of the published recipes: SGD or AdamW with one group per parameter and clipping of the whole gradient."""

from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from detectron2.solver.build import maybe_add_gradient_clipping
from prompt_pretrain.errors import InputError
from prompt_pretrain.gradient_clipping import clipping_whole_gradient

__all__ = ["build_custom_optimizer", "build_optimizer"]

_FULL_MODEL = "full_model"


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """`build_custom_optimizer` with ``SOLVER.USE_CUSTOM_SOLVER``, otherwise detectron2's SGD.

    Raises:
        InputError: a setting that only the custom one knows, without ``SOLVER.USE_CUSTOM_SOLVER``.
    """
    if cfg.SOLVER.USE_CUSTOM_SOLVER:
        return build_custom_optimizer(cfg, model)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    ignored = {
        f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER}": cfg.SOLVER.OPTIMIZER != "SGD",
        f"SOLVER.BACKBONE_MULTIPLIER {cfg.SOLVER.BACKBONE_MULTIPLIER}": cfg.SOLVER.BACKBONE_MULTIPLIER != 1.0,
        f"SOLVER.CUSTOM_MULTIPLIER {cfg.SOLVER.CUSTOM_MULTIPLIER}": cfg.SOLVER.CUSTOM_MULTIPLIER != 1.0,
        f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {clip.CLIP_TYPE}": clip.ENABLED and clip.CLIP_TYPE == _FULL_MODEL,
    }
    for setting, is_set in ignored.items():
        if is_set:
            raise InputError(f"{setting} needs SOLVER.USE_CUSTOM_SOLVER True; detectron2's own optimizer has no such")
    return build_detectron2_optimizer(cfg, model)


def build_custom_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW (``SOLVER.OPTIMIZER``) with one group per trainable parameter, in the order of the modules.

    The learning rate is BASE_LR, times BACKBONE_MULTIPLIER where the name contains "backbone", times CUSTOM_MULTIPLIER
    where it contains one of CUSTOM_MULTIPLIER_NAME. WEIGHT_DECAY holds for every parameter, norms and biases too.
    CLIP_GRADIENTS of type ``full_model`` clips one norm over all gradients inside ``step``, other types as detectron2
    does: clipping inside ``step`` sees the gradients that a gradient scaler has unscaled.

    Raises:
        InputError: an unknown optimizer, or a model without trainable parameters.
    """
    solver = cfg.SOLVER
    groups: list[dict[str, Any]] = []
    for name, parameter in model.named_parameters():  # shared ones come once
        if not parameter.requires_grad:
            continue
        lr = solver.BASE_LR
        if "backbone" in name:
            lr *= solver.BACKBONE_MULTIPLIER
        if any(part in name for part in solver.CUSTOM_MULTIPLIER_NAME):
            lr *= solver.CUSTOM_MULTIPLIER
        groups.append({"params": [parameter], "lr": lr, "weight_decay": solver.WEIGHT_DECAY})
    if not groups:
        raise InputError("no parameter of the model is trainable, so there is nothing to optimise")

    optimizer: type[torch.optim.Optimizer]
    options: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    elif solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW
    else:
        raise InputError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; expected SGD or ADAMW")
    if solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == _FULL_MODEL:
        optimizer = clipping_whole_gradient(optimizer, solver.CLIP_GRADIENTS.CLIP_VALUE)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return optimizer(groups, **options)
