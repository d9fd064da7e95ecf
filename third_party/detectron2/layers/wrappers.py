"""Convolution with norm and activation, and small functions that take inputs of any length."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat``, but a single tensor is returned as it is, without a copy."""
    assert isinstance(tensors, (list, tuple)), f"cat takes a list of tensors, got {type(tensors).__name__}"
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Indices of nonzero elements, one tensor per dimension."""
    return x.nonzero(as_tuple=True)


def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    """``src`` on the device of ``dst``."""
    return src.to(dst.device)


def full_precision(x: Tensor) -> Tensor:
    """``x`` as float32 if it is of half precision, for operations that lose too much in it or do not know it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any) -> Tensor:
    """``F.cross_entropy``, but the mean over no targets is a differentiable 0, not NaN."""
    if target.numel() == 0 and reduction == "mean":
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


class Conv2d(nn.Conv2d):
    """Convolution, then ``norm``, then ``activation``."""

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Arguments of ``nn.Conv2d``, and a normalisation layer and a function that follow it."""
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


ConvTranspose2d = nn.ConvTranspose2d
BatchNorm2d = nn.BatchNorm2d
Linear = nn.Linear
interpolate = F.interpolate
