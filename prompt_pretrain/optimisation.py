"""Stochastic gradient descent on the prompt and its learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from fvcore.common.config import CfgNode
from torch import Tensor


def learning_rate(
    epoch: int,
    *,
    base_lr: float,
    max_epoch: int,
    warmup_epoch: int = 1,
    warmup_type: str = "constant",
    warmup_cons_lr: float = 1e-5,
    warmup_min_lr: float = 1e-5,
    warmup_recount: bool = True,
) -> float:
    """Learning rate of the 0-based ``epoch``: a warm-up, then half a cosine over ``max_epoch`` epochs.

    The warm-up takes ``warmup_epoch`` epochs (none if <= 0): ``"constant"`` at ``warmup_cons_lr``, ``"linear"`` at
    ``warmup_min_lr`` in epoch 0 and ``base_lr * epoch / warmup_epoch`` then. The cosine's period is ``max_epoch``
    whatever the warm-up took; with ``warmup_recount`` its own counter starts at 0 after the warm-up, so the rate never
    reaches 0 (as in Dassl, which POMP and CoOp train with).
    """
    if epoch < warmup_epoch:
        if warmup_type == "constant":
            return warmup_cons_lr
        return warmup_min_lr if epoch == 0 else base_lr * epoch / warmup_epoch
    counter = epoch - max(warmup_epoch, 0) if warmup_recount else epoch
    return 0.5 * base_lr * (1 + math.cos(math.pi * counter / max_epoch))


def learning_rate_from_cfg(epoch: int, optim: CfgNode) -> float:
    """:func:`learning_rate` with the settings of ``cfg.OPTIM``."""
    return learning_rate(
        epoch,
        base_lr=optim.LR,
        max_epoch=optim.MAX_EPOCH,
        warmup_epoch=optim.WARMUP_EPOCH,
        warmup_type=optim.WARMUP_TYPE,
        warmup_cons_lr=optim.WARMUP_CONS_LR,
        warmup_min_lr=optim.WARMUP_MIN_LR,
        warmup_recount=optim.WARMUP_RECOUNT,
    )


def build_sgd(
    parameters: Iterable[Tensor],
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """SGD whose learning rate is set before each step with :func:`set_learning_rate`."""
    return torch.optim.SGD(
        parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay, dampening=dampening, nesterov=nesterov
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
