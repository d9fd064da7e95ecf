"""Building the optimizer and the learning-rate schedule of ``cfg.SOLVER``."""

import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

logger = logging.getLogger(__name__)

_NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """Values of ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``. The real detectron2 has no ``full_model``."""

    VALUE = "value"
    NORM = "norm"
    FULL_MODEL = "full_model"


def _create_gradient_clipper(clip: CfgNode) -> Callable[[list[nn.Parameter]], object]:
    """A function that clips, in place, the gradients of the parameters it is given.

    ``value`` and ``norm`` treat each parameter tensor by itself, ``full_model`` uses one norm over all of them.

    Raises:
        ValueError: CLIP_TYPE is unknown or CLIP_VALUE is not positive.
    """
    try:
        kind = GradientClipType(clip.CLIP_TYPE)
    except ValueError:
        known = ", ".join(kind.value for kind in GradientClipType)
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; expected one of {known}") from None
    limit, norm_type = float(clip.CLIP_VALUE), float(clip.NORM_TYPE)
    if not limit > 0:
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {clip.CLIP_VALUE}; it must be greater than 0")

    def clip_value(parameters: list[nn.Parameter]) -> None:
        nn.utils.clip_grad_value_(parameters, limit)

    def clip_each_norm(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, limit, norm_type)

    def clip_joint_norm(parameters: list[nn.Parameter]) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, limit, norm_type)

    return {
        GradientClipType.VALUE: clip_value,
        GradientClipType.NORM: clip_each_norm,
        GradientClipType.FULL_MODEL: clip_joint_norm,
    }[kind]


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer]
) -> torch.optim.Optimizer | type[torch.optim.Optimizer]:
    """``optimizer`` with gradients clipped at the start of ``step`` if ``SOLVER.CLIP_GRADIENTS.ENABLED``.

    An optimizer comes back as the same object, whose class is now ``<Class>WithGradientClip``; a class as a subclass of
    that name. Clipping inside ``step`` makes a gradient scaler hand over true, unscaled gradients.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    base = type(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    clip_gradients = _create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS.clone())

    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        clip_gradients([p for group in self.param_groups for p in group["params"] if p.grad is not None])
        return super(clipping, self).step(closure)

    clipping = type(base.__name__ + "WithGradientClip", (base,), {"step": step})
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer.__class__ = clipping
        return optimizer
    return clipping


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over the trainable parameters of ``model``, with the decay rules of ``cfg.SOLVER``."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: each trainable parameter once, in the order of the modules.

    Args:
        base_lr: learning rate of all groups; may be left out if nothing below changes a learning rate.
        weight_decay: of all parameters but those below; None leaves it to the optimizer.
        weight_decay_norm: of the parameters of normalisation layers.
        bias_lr_factor: factor on the learning rate of parameters whose last name part is "bias".
        weight_decay_bias: weight decay of the same parameters.
        lr_factor_func: full parameter name → factor on the learning rate.
        overrides: last name part of a parameter ("bias", "relative_position_bias_table") → settings that win over
            everything else.
    Returns:
        Groups {"params": [...], "lr": ..., "weight_decay": ...}; parameters with equal settings share a group.
    Raises:
        ValueError: a factor without ``base_lr``, or both ``overrides["bias"]`` and settings for biases.
    """
    defaults: dict[str, float] = {}
    if base_lr is not None:
        defaults["lr"] = base_lr
    if weight_decay is not None:
        defaults["weight_decay"] = weight_decay

    bias_settings: dict[str, float] = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor requires base_lr: give both, or leave bias_lr_factor at 1")
        bias_settings["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias_settings["weight_decay"] = weight_decay_bias
    overrides = dict(overrides or {})
    if bias_settings:
        if "bias" in overrides:
            raise ValueError(
                "Conflicting overrides for 'bias': give them either in overrides or by bias_lr_factor and "
                "weight_decay_bias"
            )
        overrides["bias"] = bias_settings
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func requires base_lr")

    groups: list[dict[str, Any]] = []
    for full_name, module, parameter in _trainable_parameters(model):
        settings = dict(defaults)
        if weight_decay_norm is not None and isinstance(module, _NORM_LAYERS):
            settings["weight_decay"] = weight_decay_norm
        if lr_factor_func is not None:
            settings["lr"] *= lr_factor_func(full_name)
        settings.update(overrides.get(full_name.rpartition(".")[2], {}))
        groups.append({"params": [parameter], **settings})
    return reduce_param_groups(groups)


def _trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """(full name, module that owns it, parameter) of every parameter that gets gradients, shared ones once."""
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield f"{module_name}.{name}" if module_name else name, module, parameter


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups whose settings are equal, in the order of their first appearance.

    Fewer, larger groups let the multi-tensor implementations of optimizers work on more tensors at once.
    """
    merged: dict[tuple[tuple[str, Any], ...], list[nn.Parameter]] = {}
    for group in params:
        settings = tuple(sorted((key, value) for key, value in group.items() if key != "params"))
        merged.setdefault(settings, []).extend(group["params"])
    return [{"params": parameters, **dict(settings)} for settings, parameters in merged.items()]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule named by ``SOLVER.LR_SCHEDULER_NAME``, with warmup, over ``SOLVER.MAX_ITER`` iterations.

    Raises:
        ValueError: the name is unknown, or MAX_ITER is not positive.
    """
    solver = cfg.SOLVER
    if solver.MAX_ITER <= 0:
        raise ValueError(f"SOLVER.MAX_ITER is {solver.MAX_ITER}; a schedule needs at least 1 iteration")
    schedule = WarmupParamScheduler(
        _build_schedule(solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _build_schedule(solver: CfgNode) -> ParamScheduler:
    """Factor on the base learning rate as a function of the progress in [0, 1], before warmup."""
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
        if len(steps) != len(solver.STEPS):
            logger.warning(
                f"SOLVER.STEPS {tuple(solver.STEPS)} has values that are not below SOLVER.MAX_ITER {solver.MAX_ITER}; "
                "they are ignored"
            )
        return MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)], milestones=steps, num_updates=solver.MAX_ITER
        )
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        end_value = solver.BASE_LR_END / solver.BASE_LR
        if not 0.0 <= end_value <= 1.0:
            raise ValueError(
                f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}; expected 0 to SOLVER.BASE_LR, {solver.BASE_LR}"
            )
        return CosineParamScheduler(1, end_value)
    if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
        return StepWithFixedGammaParamScheduler(
            base_value=1.0, gamma=solver.GAMMA, num_decays=solver.NUM_DECAYS, num_updates=solver.MAX_ITER
        )
    raise ValueError(
        f"Unknown LR scheduler: SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME!r}; expected WarmupMultiStepLR, "
        "WarmupCosineLR or WarmupStepWithFixedGammaLR"
    )
