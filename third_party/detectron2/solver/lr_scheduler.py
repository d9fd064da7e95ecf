"""Learning-rate schedules: a factor of the training progress with warmup, and the older per-iteration classes."""

import math
from bisect import bisect_right
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "LRMultiplier",
    "LRScheduler",
    "WarmupCosineLR",
    "WarmupMultiStepLR",
    "WarmupParamScheduler",
]


class WarmupParamScheduler(CompositeParamScheduler):
    """Another schedule with a warmup in front of it.

    Args:
        scheduler: what follows the warmup.
        warmup_factor: start of the warmup relative to the first value of ``scheduler``.
        warmup_length: part of the whole training, 0 to 1.
        warmup_method: "linear" rises to the value that ``scheduler`` has where the warmup ends; "constant" stays at
            the start and then jumps.
        rescale_interval: whether ``scheduler`` is squeezed into the time after the warmup; otherwise its beginning is
            cut off.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            warmup: ParamScheduler = LinearParamScheduler(start, scheduler(0.0 if rescale_interval else warmup_length))
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method!r}; expected 'linear' or 'constant'")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Sets each group's learning rate to its base rate times ``multiplier(iterations done / max_iter)``.

    Call ``step`` once after each ``optimizer.step``. The state holds only numbers: a changed schedule takes effect in
    a resumed training.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(
                f"LRMultiplier(multiplier=) must be an instance of fvcore ParamScheduler, got {multiplier} instead"
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """{"base_lrs": one per group, "last_epoch": iterations done}."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        """The learning rate of each group now."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


class _WarmupLR(LRScheduler):
    """Base of the older schedules, which count iterations instead of progress: warmup times ``_decay``."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_factor: float,
        warmup_iters: int,
        warmup_method: str,
        last_epoch: int,
    ) -> None:
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def _decay(self) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        """The learning rate of each group now."""
        warmup = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        factor = warmup * self._decay()
        return [base_lr * factor for base_lr in self.base_lrs]


class WarmupMultiStepLR(_WarmupLR):
    """Times ``gamma`` at each milestone (iterations), with warmup. ``build_lr_scheduler`` no longer uses it."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: list[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        if list(milestones) != sorted(milestones):
            raise ValueError(f"Milestones should be a list of increasing integers. Got {milestones}")
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self) -> float:
        return self.gamma ** bisect_right(self.milestones, self.last_epoch)


class WarmupCosineLR(_WarmupLR):
    """Half a cosine from the base rate to 0 at ``max_iters``, with warmup. ``build_lr_scheduler`` no longer uses it."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        self.max_iters = max_iters
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * self.last_epoch / self.max_iters))


def _get_warmup_factor_at_iter(method: str, iter: int, warmup_iters: int, warmup_factor: float) -> float:
    """Factor on the learning rate at iteration ``iter``: 1 from ``warmup_iters`` on, before that as ``method`` says.

    Raises:
        ValueError: ``method`` is neither "constant" nor "linear" (only found out during the warmup).
    """
    if iter >= warmup_iters:
        return 1.0
    if method == "constant":
        return warmup_factor
    if method == "linear":
        alpha = iter / warmup_iters
        return warmup_factor * (1 - alpha) + alpha
    raise ValueError(f"Unknown warmup method: {method!r}; expected 'constant' or 'linear'")
