"""Swin Transformer (arXiv 2103.14030) as a backbone for images of any size."""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detection.backbones.timm_backbone import build_fpn
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from prompt_pretrain.errors import InputError

__all__ = ["SwinTransformer", "build_swintransformer_backbone"]

_PATCH = 4
_OTHER_REGION = -100.0  # added to logits between regions that the cyclic shift brings together


class SwinSize(NamedTuple):
    """Width of the first stage, blocks and heads per stage, side of the windows, last rate of stochastic depth."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    drop_path: float


_BASE = SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3)
_LARGE = SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 7, 0.3)
SIZES = {
    "T": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2),
    "S": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.2),
    "B": _BASE,
    "B-22k": _BASE,
    "B-22k-384": _BASE._replace(window=12),
    "L-22k": _LARGE,
    "L-22k-384": _LARGE._replace(window=12),
}


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class WindowAttention(nn.Module):
    """Self-attention inside windows of ``window`` × ``window`` positions with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_position_index(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of windows x (B · windows, N, C), window-minor; ``mask`` (windows, N, N) is added to the logits."""
        count, positions, width = x.shape
        q, k, v = self.qkv(x).view(count, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (count, heads, N, d)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (heads, N, N)
        bias = bias.to(q.dtype)[None]
        if mask is not None:
            bias = (bias + mask.to(q.dtype)[:, None]).repeat(count // len(mask), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(count, positions, width))


class SwinBlock(nn.Module):
    """Attention in windows, which ``shift`` moves by that many positions, and an MLP, each pre-normalised."""

    def __init__(self, width: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, window, heads)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C); ``mask`` is that of `shift_mask` for the padded map."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        side = self.window
        # Padded after the norm, so that the border holds zeros.
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        x = x.view(batch, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side * side, channels)
        x = self.attn(x, mask if self.shift else None)
        x = x.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        x = x.reshape(batch, rows * side, columns * side, channels)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Halves height and width: four neighbours are joined, normalised and reduced to twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Row-minor: (even, even), (odd, even), (even, odd), (odd, odd) as (row, column).
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class SwinStage(nn.Module):
    """Blocks on one resolution and, but for the last stage, the `PatchMerging` behind them."""

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        drop_paths: Sequence[float],
        with_downsample: bool,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.window = window
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, window // 2 * (i % 2), rate) for i, rate in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(width) if with_downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """The map (B, H, W, C) behind the blocks, before the merging."""
        mask = shift_mask(x.shape[1], x.shape[2], self.window, x.device)
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x


class PatchEmbedding(nn.Module):
    """A 4×4 convolution of stride 4 and a norm; images are zero-padded at the right and at the bottom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=_PATCH, stride=_PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ⌈H/4⌉, ⌈W/4⌉, C) of images (B, 3, H, W)."""
        x = F.pad(x, (0, -x.shape[3] % _PATCH, 0, -x.shape[2] % _PATCH))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinTransformer(Backbone):
    """Feature maps ``swin<i>`` of stride 4 · 2^i, normalised by ``norm<i>``.

    Args:
        size: widths, depths and windows.
        out_stages: stages i, of 0 to 3, to return.
        use_checkpoint: compute activations of the blocks again in the backward pass instead of keeping them.
    Raises:
        InputError: a stage that does not exist.
    """

    def __init__(self, size: SwinSize, out_stages: Sequence[int], use_checkpoint: bool = False) -> None:
        super().__init__()
        stages = len(size.depths)
        if not out_stages or not all(0 <= stage < stages for stage in out_stages):
            raise InputError(f"MODEL.SWIN.OUT_FEATURES is {list(out_stages)}; expected some of 0 to {stages - 1}")
        self.patch_embed = PatchEmbedding(size.width)
        blocks = sum(size.depths)
        rates = iter([size.drop_path * block / (blocks - 1) for block in range(blocks)])
        self.layers = nn.ModuleList(
            SwinStage(
                size.width * 2**stage,
                size.heads[stage],
                size.window,
                [next(rates) for _ in range(size.depths[stage])],
                with_downsample=stage + 1 < stages,
                use_checkpoint=use_checkpoint,
            )
            for stage in range(stages)
        )
        self.apply(_init_linear)
        self.out_stages = tuple(sorted(out_stages))
        self._out_features = [f"swin{stage}" for stage in self.out_stages]
        self._out_feature_channels = {f"swin{stage}": size.width * 2**stage for stage in self.out_stages}
        self._out_feature_strides = {f"swin{stage}": _PATCH * 2**stage for stage in self.out_stages}
        for stage in self.out_stages:
            self.add_module(f"norm{stage}", nn.LayerNorm(size.width * 2**stage))

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patch_embed(x)
        outputs = {}
        for stage, layer in enumerate(self.layers):
            x = layer(x)
            if stage in self.out_stages:
                outputs[f"swin{stage}"] = self.get_submodule(f"norm{stage}")(x).permute(0, 3, 1, 2).contiguous()
            if stage == self.out_stages[-1]:
                break
            x = layer.downsample(x)
        return outputs


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """(windows, N, N) logits of a map padded to whole windows: 0 inside a region, -100 between regions.

    A cyclic shift by half a window joins the map's opposite borders in its last windows. Positions there may attend
    only to those that were near them before: the map has 3 × 3 such regions.
    """
    shift = window // 2
    regions = []
    for length in (height, width):
        position = torch.arange(length + -length % window, device=device)
        regions.append((position >= len(position) - window).int() + (position >= len(position) - shift).int())
    region = 3 * regions[0][:, None] + regions[1][None, :]
    rows, columns = region.shape[0] // window, region.shape[1] // window
    region = region.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, -1)  # (windows, N)
    return (region[:, :, None] != region[:, None, :]) * _OTHER_REGION


def _relative_position_index(window: int) -> Tensor:
    """(N, N) row of the bias table for each pair of positions of a window."""
    steps = torch.arange(window)
    row, column = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
    rows = row[:, None] - row[None, :] + window - 1
    columns = column[:, None] - column[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_swintransformer_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinTransformer:
    """The network of ``MODEL.SWIN``."""
    settings = cfg.MODEL.SWIN
    if settings.SIZE not in SIZES:
        raise InputError(f"MODEL.SWIN.SIZE is {settings.SIZE!r}; expected one of {', '.join(SIZES)}")
    return SwinTransformer(SIZES[settings.SIZE], settings.OUT_FEATURES, settings.USE_CHECKPOINT)


@BACKBONE_REGISTRY.register()
def build_swintransformer_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """`FPN` on `build_swintransformer_backbone`, with ``p6`` and ``p7`` by convolutions from ``p5``."""
    return build_fpn(cfg, build_swintransformer_backbone(cfg, input_shape), with_p6p7=True)


@BACKBONE_REGISTRY.register()
def build_swintransformer_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NoReturn:
    """Not part of this package: no published detector has it."""
    raise NotImplementedError(
        "build_swintransformer_bifpn_backbone (MODEL.BACKBONE.NAME): BiFPN is not part of this package; use "
        "build_swintransformer_fpn_backbone, or register your own"
    )
