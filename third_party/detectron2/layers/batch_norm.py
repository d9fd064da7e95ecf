"""Normalisation layers: frozen, synchronised and channels-first ones, and their names in configs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and affine parameters, in training mode as well.

    All of them are buffers: ``weight``, ``bias``, ``running_mean``, ``running_var`` (C,), and ``num_batches_tracked``
    where the layer was converted from one that has it.
    """

    _version = 3
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        """``num_features``: C of inputs (N, C, H, W). A fresh layer changes nothing."""
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        # batch_norm would save its input for a gradient of the parameters that nobody asks for.
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        bias = self.bias - self.running_mean * scale
        return (x * scale.to(x.dtype)[:, None, None]).add_(bias.to(x.dtype)[:, None, None])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        version = local_metadata.get("version")
        if version is None or version < 2:  # these had no statistics: they were folded into weight and bias
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # Checkpoints hold this counter or not, depending on how the layer was frozen; it has no effect.
        counter = prefix + "num_batches_tracked"
        for keys in (missing_keys, unexpected_keys):
            if counter in keys:
                keys.remove(counter)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """``module`` with every BatchNorm2d and SyncBatchNorm in it replaced by a frozen copy.

        A module that is such a norm itself gives a new module; any other one is changed in place and returned.
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            return cls._frozen_copy(module)
        for name, child in module.named_children():
            converted = cls.convert_frozen_batchnorm(child)
            if converted is not child:
                module.add_module(name, converted)
        return module

    @classmethod
    def _frozen_copy(cls, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> "FrozenBatchNorm2d":
        if norm.running_mean is None:
            raise ValueError(f"{norm} keeps no running statistics (track_running_stats=False), so it cannot be frozen")
        frozen = cls(norm.num_features, norm.eps)
        sources = ["running_mean", "running_var", "num_batches_tracked"] + (["weight", "bias"] if norm.affine else [])
        for name in sources:
            source = getattr(norm, name)
            setattr(frozen, name, None if source is None else source.detach().clone())
        return frozen.to(norm.running_mean.device)


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with statistics over all processes, written with plain differentiable reductions.

    ``stats_mode`` "" gives every process the same weight (all must have inputs of the same shape); "N" weights each by
    its number of images, which may be 0. The running variance is the biased one.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if stats_mode not in ("", "N"):
            raise ValueError(f"stats_mode is {stats_mode!r}; expected '' or 'N'")
        if self.momentum is None or self.running_mean is None or not self.affine:
            raise ValueError("NaiveSyncBatchNorm needs momentum, track_running_stats and affine")
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if world == 1 or not self.training:
            return super().forward(input)
        images, channels = input.shape[:2]
        if self._stats_mode == "" and images == 0:
            raise ValueError("a process has no image: synchronised statistics then need stats_mode 'N' (naiveSyncBN_N)")
        x = input.float()  # sums in half precision lose digits
        weight = float(images) if self._stats_mode == "N" else 1.0
        # The mean over no elements is NaN, a sum over none is a 0 that still takes part in the backward reduction.
        count = max(x.numel() // channels, 1)
        moments = torch.cat((x.sum(dim=(0, 2, 3)) / count, (x * x).sum(dim=(0, 2, 3)) / count, x.new_ones(1)))
        moments = differentiable_all_reduce(moments * weight)
        mean, mean_square, total = moments.split((channels, channels, 1))
        total = total.detach()
        some = total.clamp(max=1)  # 0 when no process has an image: running statistics then stay
        mean, mean_square = mean / total.clamp(min=1), mean_square / total.clamp(min=1)
        variance = (mean_square - mean * mean).clamp(min=0)
        self._update_running(mean.detach(), variance.detach(), some)
        scale = self.weight * (variance + self.eps).rsqrt()
        bias = self.bias - mean * scale
        return (x * scale[:, None, None] + bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, some: Tensor) -> None:
        self.running_mean.add_((mean - self.running_mean) * self.momentum * some)
        self.running_var.add_((variance - self.running_var) * self.momentum * some)
        self.num_batches_tracked.add_(1)


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of (N, C, H, W)."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        normalised = (x - mean) * (variance + self.eps).rsqrt()
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": partial(nn.GroupNorm, 32),
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": partial(NaiveSyncBatchNorm, stats_mode="N"),
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """A normalisation layer for ``out_channels`` channels; None for None or "".

    ``norm``: BN, SyncBN, nnSyncBN, FrozenBN, GN (32 groups), naiveSyncBN, naiveSyncBN_N, LN (over channels), or a
    function that makes a layer from the number of channels.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise ValueError(f'NORM is {norm!r}; expected "" or one of {", ".join(_NORMS)}')
        norm = _NORMS[norm]
    return norm(out_channels)
