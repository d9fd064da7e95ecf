"""Deformable convolution, v1 (arXiv 1703.06211) and v2 with modulation (arXiv 1811.11168)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

from detectron2.layers.wrappers import full_precision

IntPair = int | tuple[int, int]


class _DeformConvBase(nn.Module):
    """Parameters and the computation that both versions share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair,
        padding: IntPair,
        dilation: IntPair,
        groups: int,
        deformable_groups: int,
        bias: bool,
        norm: nn.Module | None,
        activation: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{in_channels} input and {out_channels} output channels do not divide by groups {groups}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.norm = norm
        self.activation = activation
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        if x.numel() == 0:
            x = self._empty_output(x, offset)
        else:
            x = deform_conv2d(
                full_precision(x),
                full_precision(offset),
                full_precision(self.weight),
                None if self.bias is None else full_precision(self.bias),
                self.stride,
                self.padding,
                self.dilation,
                None if mask is None else full_precision(mask),
            ).to(x.dtype)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def _empty_output(self, x: Tensor, offset: Tensor) -> Tensor:
        sides = [
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, padding, dilation, kernel, stride in zip(
                x.shape[-2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        ]
        unused = self.weight.sum() + x.sum() + offset.sum()  # keeps every input in the graph, with zero gradients
        return x.new_zeros(x.shape[0], self.out_channels, *sides) + 0.0 * unused

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"deformable_groups={self.deformable_groups}, bias={self.bias is not None}"
        )


class DeformConv(_DeformConvBase):
    """Convolution whose kernel positions are shifted by a given offset at every output position."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """As ``nn.Conv2d``, without bias; ``deformable_groups`` groups of input channels have offsets of their own."""
        assert not bias, "DeformConv has no bias"
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            False,
            norm,
            activation,
        )

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """(N, out_channels, Ho, Wo) from x (N, C, H, W) and offset (N, 2 · kh · kw · deformable_groups, Ho, Wo).

        Offsets are in pixels, (dy, dx) for one kernel position after the other.
        """
        return self._convolve(x, offset, None)


class ModulatedDeformConv(_DeformConvBase):
    """Deformable convolution that also weights each kernel position at every output position."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """As ``nn.Conv2d``; ``deformable_groups`` groups of input channels have offsets and weights of their own."""
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            bias,
            norm,
            activation,
        )

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """As ``DeformConv.forward``; ``mask`` (N, kh · kw · deformable_groups, Ho, Wo) holds weights in [0, 1]."""
        return self._convolve(x, offset, mask)
