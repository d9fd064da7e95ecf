"""The optimiser of MaskFormer and ZSSeg: one group per parameter, with rates and decays by its place in the model."""

from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from prompt_pretrain.errors import InputError
from prompt_pretrain.gradient_clipping import clipping_whole_gradient

__all__ = ["build_optimizer", "parameter_groups"]

_NORMS = (
    nn.modules.batchnorm._BatchNorm,  # SyncBatchNorm is one
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
_NEVER_DECAYED = ("relative_position_bias_table", "absolute_pos_embed")
_FULL_MODEL = "full_model"


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW (SOLVER.OPTIMIZER) over :func:`parameter_groups`.

    CLIP_GRADIENTS of type ``full_model`` clips one norm over all gradients inside ``step``, other types as detectron2
    does.

    Raises:
        InputError: an unknown optimizer, a model without trainable parameters, a CLIP_VALUE that is not positive.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(cfg, model)
    if not groups:
        raise InputError(
            f"no parameter of {cfg.MODEL.META_ARCHITECTURE} is trainable, so there is nothing to optimise; choose a "
            f"MODEL.CLIP_ADAPTER.PROMPT_LEARNER that learns, or add --eval-only"
        )
    optimizer: type[torch.optim.Optimizer]
    options: dict[str, Any] = {"lr": solver.BASE_LR}
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD
        options["momentum"] = solver.MOMENTUM
    elif solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW
    else:
        raise InputError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; expected SGD or ADAMW")
    if solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == _FULL_MODEL:
        optimizer = clipping_whole_gradient(optimizer, solver.CLIP_GRADIENTS.CLIP_VALUE)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return optimizer(groups, **options)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """A group for each trainable parameter, in the order of the modules; a shared one comes once.

    The learning rate is BASE_LR, in modules with "backbone" in their name times BACKBONE_MULTIPLIER. The decay is
    WEIGHT_DECAY, of norms WEIGHT_DECAY_NORM, of embeddings WEIGHT_DECAY_EMBED, of Swin's position parameters 0.
    """
    solver = cfg.SOLVER
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = solver.WEIGHT_DECAY
            if any(part in name for part in _NEVER_DECAYED):
                decay = 0.0
            if isinstance(module, _NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding):
                decay = solver.WEIGHT_DECAY_EMBED
            rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if "backbone" in module_name else 1.0)
            groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return groups
