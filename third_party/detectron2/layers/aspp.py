"""Atrous spatial pyramid pooling (DeepLab v3, arXiv 1706.05587)."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.layers.batch_norm import get_norm
from detectron2.layers.blocks import DepthwiseSeparableConv2d
from detectron2.layers.wrappers import Conv2d


class ASPP(nn.Module):
    """Five views of a feature map side by side: 1x1, three dilated 3x3 convolutions and a pooled one; then 1x1.

    Children: ``convs.0`` to ``convs.4`` in this order and ``project``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        *,
        norm: str | Callable[[int], nn.Module],
        activation: Callable[[Tensor], Tensor],
        pool_kernel_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ) -> None:
        """
        Args:
            dilations: of the three dilated convolutions.
            norm: as in ``get_norm``.
            pool_kernel_size: (height, width) of the pooling window; None pools the whole map. Training inputs must
                have multiples of it as their size.
            dropout: probability, after the projection.
            use_depthwise_separable_conv: make the dilated convolutions depthwise separable.
        """
        super().__init__()
        if len(dilations) != 3:
            raise ValueError(f"ASPP takes 3 dilations, got {list(dilations)}")
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        def plain(inputs: int, kernel: int = 1, dilation: int = 1) -> Conv2d:
            conv = Conv2d(
                inputs,
                out_channels,
                kernel_size=kernel,
                padding=dilation if kernel > 1 else 0,
                dilation=dilation,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
                activation=deepcopy(activation),
            )
            weight_init.c2_xavier_fill(conv)
            return conv

        def dilated(dilation: int) -> nn.Module:
            if not use_depthwise_separable_conv:
                return plain(in_channels, kernel=3, dilation=dilation)
            return DepthwiseSeparableConv2d(
                in_channels,
                out_channels,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                norm1=norm,
                activation1=deepcopy(activation),
                norm2=norm,
                activation2=deepcopy(activation),
            )

        # One value per channel is too little to normalise, so the convolution of the pooled map has a bias and no norm.
        pooled = Conv2d(in_channels, out_channels, kernel_size=1, bias=True, activation=deepcopy(activation))
        weight_init.c2_xavier_fill(pooled)
        pool = nn.AdaptiveAvgPool2d(1) if pool_kernel_size is None else nn.AvgPool2d(pool_kernel_size, stride=1)
        self.convs = nn.ModuleList(
            [plain(in_channels), *(dilated(dilation) for dilation in dilations), nn.Sequential(pool, pooled)]
        )
        self.project = plain(5 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W)."""
        size = x.shape[-2:]
        window = self.pool_kernel_size or (1, 1)
        if size[0] % window[0] or size[1] % window[1]:
            raise ValueError(
                f"ASPP input of size {tuple(size)} is not a multiple of pool_kernel_size {window}; "
                "set INPUT.CROP.SIZE accordingly"
            )
        views = [conv(x) for conv in self.convs]
        views[-1] = F.interpolate(views[-1], size=size, mode="bilinear", align_corners=False)
        x = self.project(torch.cat(views, dim=1))
        return F.dropout(x, self.dropout, training=self.training) if self.dropout > 0 else x
