"""Layers with frozen weights that keep for backward only what the gradient of their input needs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def layer_norm(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """LayerNorm over the last dimension, computed in float32, returned in ``dtype``.

    Saves the normalised input once, in ``dtype``: half the memory of torch's own under bf16, whose residual stream
    stays in float32.
    """
    return _LayerNorm.apply(x, norm.weight, norm.bias, norm.eps, dtype)


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``; saves ``x`` alone."""
    return _QuickGELU.apply(x)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        normal, _, inverse_std = torch.native_layer_norm(x.float(), x.shape[-1:], None, None, eps)
        ctx.save_for_backward(normal.to(dtype), inverse_std, weight)
        ctx.dtype = x.dtype
        return torch.addcmul(bias.float(), normal, weight.float()).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        normal, inverse_std, weight = ctx.saved_tensors
        grad, normal = grad.float() * weight.float(), normal.float()
        projection = (grad * normal).mean(-1, keepdim=True)
        grad = grad.sub_(grad.mean(-1, keepdim=True)).addcmul_(normal, projection, value=-1).mul_(inverse_std)
        return grad.to(ctx.dtype), None, None, None, None


class _QuickGELU(torch.autograd.Function):
    # With a = 1.702: x * sigmoid(a x) = silu(a x) / a, and its derivative is silu'(a x): torch's fused kernels serve.
    _SLOPE = 1.702

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x * _QuickGELU._SLOPE, inplace=True).mul_(1 / _QuickGELU._SLOPE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, x * _QuickGELU._SLOPE)
