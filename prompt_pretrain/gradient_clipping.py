"""Optimisers that clip the norm of the whole gradient, as published recipes do; detectron2 has no such type."""

from collections.abc import Callable

import torch
from torch import nn

from prompt_pretrain.errors import InputError

__all__ = ["clipping_whole_gradient"]


def clipping_whole_gradient(base: type[torch.optim.Optimizer], max_norm: float) -> type[torch.optim.Optimizer]:
    """``base`` with the L2 norm over all gradients clipped to ``max_norm`` at the start of ``step``.

    Inside ``step``, so that a gradient scaler hands over true, unscaled gradients.

    Raises:
        InputError: ``max_norm``, which is SOLVER.CLIP_GRADIENTS.CLIP_VALUE, is not positive.
    """
    if not max_norm > 0:
        raise InputError(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {max_norm}; it must be greater than 0")

    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm)
        return base.step(self, closure)  # type: ignore[arg-type]

    return type(f"{base.__name__}WithFullModelClip", (base,), {"step": step})
