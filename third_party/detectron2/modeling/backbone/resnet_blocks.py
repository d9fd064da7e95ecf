"""Stems and residual blocks of ResNet. Convolutions have no bias, each is followed by its norm."""

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from detectron2.layers.batch_norm import get_norm
from detectron2.layers.blocks import CNNBlockBase, Norm
from detectron2.layers.deform_conv import DeformConv, ModulatedDeformConv
from detectron2.layers.wrappers import Conv2d


def _conv(in_channels: int, out_channels: int, kernel: int, norm: Norm, **options: int) -> Conv2d:
    """A convolution without bias and its norm, MSRA-initialised; odd kernels keep the size at stride 1."""
    options.setdefault("padding", kernel // 2)
    conv = Conv2d(in_channels, out_channels, kernel, bias=False, norm=get_norm(norm, out_channels), **options)
    c2_msra_fill(conv)
    return conv


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> Conv2d | None:
    """A projection where channels change; otherwise None, and the block's input is added as it is."""
    return None if in_channels == out_channels else _conv(in_channels, out_channels, 1, norm, stride=stride)


class BasicStem(CNNBlockBase):
    """7×7 convolution of stride 2, ReLU and max-pooling of stride 2: total stride 4."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class BasicBlock(CNNBlockBase):
    """Two 3×3 convolutions, the first of them with the stride (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(F.relu_(self.conv1(x)))
        residual += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(residual)


class BottleneckBlock(CNNBlockBase):
    """1×1, 3×3 and 1×1 convolutions, the middle one with ``bottleneck_channels`` (ResNet-50, -101, -152).

    Args:
        num_groups: of the 3×3 convolution (ResNeXt).
        stride_in_1x1: give the stride to the first 1×1 convolution, as in MSRA's weights, not to the 3×3 one.
        dilation: of the 3×3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            stride=stride_3x3,
            padding=dilation,
            groups=num_groups,
            dilation=dilation,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu_(self.conv1(x))
        residual = F.relu_(self.conv2(residual))
        residual = self.conv3(residual)
        residual += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(residual)


class DeformBottleneckBlock(CNNBlockBase):
    """`BottleneckBlock` whose 3×3 convolution is deformable (v1, or v2 with ``deform_modulated``).

    ``conv2_offset`` predicts per position and deformable group 18 offsets, and 9 mask logits after them in v2. It
    starts at zero: no offset, and a mask of one half.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.deform_modulated = deform_modulated
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        window = {"kernel_size": 3, "stride": stride_3x3, "padding": dilation, "dilation": dilation}
        self.conv2_offset = Conv2d(bottleneck_channels, (27 if deform_modulated else 18) * deform_num_groups, **window)
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)
        self.conv2 = (ModulatedDeformConv if deform_modulated else DeformConv)(
            bottleneck_channels,
            bottleneck_channels,
            **window,
            bias=False,
            groups=num_groups,
            deformable_groups=deform_num_groups,
            norm=get_norm(norm, bottleneck_channels),
        )
        c2_msra_fill(self.conv2)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu_(self.conv1(x))
        prediction = self.conv2_offset(residual)
        if self.deform_modulated:
            # Two thirds are offsets, the last third logits of the mask, each for all groups.
            num_offsets = prediction.shape[1] // 3 * 2
            offset, mask = torch.split(prediction, [num_offsets, prediction.shape[1] - num_offsets], dim=1)
            residual = self.conv2(residual, offset, mask.sigmoid())
        else:
            residual = self.conv2(residual, prediction)
        residual = self.conv3(F.relu_(residual))
        residual += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(residual)
