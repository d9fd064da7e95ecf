"""Base class of convolutional blocks, and the depthwise separable convolution."""

from collections.abc import Callable

from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers.batch_norm import FrozenBatchNorm2d, get_norm
from detectron2.layers.wrappers import Conv2d

Norm = str | Callable[[int], nn.Module] | None
Activation = Callable[[Tensor], Tensor] | None


class CNNBlockBase(nn.Module):
    """A block (N, in_channels, H, W) → (N, out_channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Make the block untrainable: no gradients, and batch norms in it become FrozenBatchNorm2d. Returns itself."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self


class DepthwiseSeparableConv2d(nn.Module):
    """A convolution within each channel (``depthwise``), then a 1x1 convolution across them (``pointwise``)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1: Norm = None,
        activation1: Activation = None,
        norm2: Norm = None,
        activation2: Activation = None,
    ) -> None:
        """Norms are as in ``get_norm``; 1 follows the depthwise convolution, 2 the pointwise one."""
        super().__init__()
        self.depthwise = Conv2d(
            in_channels,
            in_channels,
            kernel_size=kernel_size,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=not norm1,
            norm=get_norm(norm1, in_channels),
            activation=activation1,
        )
        self.pointwise = Conv2d(
            in_channels,
            out_channels,
            kernel_size=1,
            bias=not norm2,
            norm=get_norm(norm2, out_channels),
            activation=activation2,
        )
        weight_init.c2_msra_fill(self.depthwise)
        weight_init.c2_msra_fill(self.pointwise)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))
