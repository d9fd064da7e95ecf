"""A modulated deformable convolution (arXiv 1811.11168) that makes its own offsets."""

import torch
from torch import Tensor, nn

from detectron2.layers import ModulatedDeformConv

__all__ = ["DFConv2d"]


class DFConv2d(nn.Module):
    """3×3 deformable convolution ``conv`` whose offsets and weights the convolution ``offset`` predicts."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.offset = nn.Conv2d(in_channels, 27, kernel_size=3, padding=1)  # per kernel position dy, dx and weight
        self.conv = ModulatedDeformConv(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)
        nn.init.zeros_(self.offset.weight)  # starts as half an ordinary convolution
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        predicted = self.offset(x)
        return self.conv(x, predicted[:, :18], torch.sigmoid(predicted[:, 18:]))
