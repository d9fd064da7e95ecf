"""The polynomial learning-rate schedule of DeepLab."""

import torch

from detectron2.solver.lr_scheduler import LRScheduler, _get_warmup_factor_at_iter


class WarmupPolyLR(LRScheduler):
    """base_lr times warmup times (1 - iteration / max_iters) to the ``power``.

    Args:
        max_iters: length of the training; the rate is 0 there.
        warmup_factor: factor at the first iteration.
        warmup_iters: the warmup factor is 1 from here on.
        warmup_method: "linear" or "constant".
        power: exponent of the decay.
        constant_ending: after the warmup, once the polynomial is below this factor, the factor is this; 0 = never.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
        power: float = 0.9,
        constant_ending: float = 0.0,
    ) -> None:
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.power = power
        self.constant_ending = constant_ending
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The learning rate of each group now."""
        warmup = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        # Beyond max_iters a fractional power of a negative number would be complex.
        decay = max(1.0 - self.last_epoch / self.max_iters, 0.0) ** self.power
        if warmup == 1.0 and decay < self.constant_ending:
            decay = self.constant_ending
        return [base_lr * warmup * decay for base_lr in self.base_lrs]
