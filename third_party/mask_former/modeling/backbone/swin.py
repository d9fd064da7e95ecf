"""Swin Transformer (arXiv 2103.14030) as a backbone for images of any size."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detectron2.modeling.backbone import Backbone

__all__ = ["SwinSettings", "SwinTransformer"]

_OTHER_REGION = -100.0  # added to logits between regions that the cyclic shift brings together


class SwinSettings(NamedTuple):
    """Width of the first stage, blocks and heads per stage, side of the windows, last rate of stochastic depth, ..."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    drop_path: float
    patch: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None  # None: 1 / sqrt(width of a head)
    dropout: float = 0.0
    attention_dropout: float = 0.0
    patch_norm: bool = True
    position_grid: int = 0  # side of a learned grid of absolute positions; 0 for none


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class WindowAttention(nn.Module):
    """Self-attention inside windows of ``window`` × ``window`` positions with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, settings: SwinSettings) -> None:
        super().__init__()
        window = settings.window
        self.heads = heads
        self.scale = settings.qk_scale
        self.attention_dropout = settings.attention_dropout
        self.dropout = nn.Dropout(settings.dropout)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_position_index(window))
        self.qkv = nn.Linear(width, 3 * width, bias=settings.qkv_bias)
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
        rate = self.attention_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate, scale=self.scale)
        return self.dropout(self.proj(out.transpose(1, 2).reshape(count, positions, width)))


class SwinBlock(nn.Module):
    """Attention in windows, which ``shift`` moves by that many positions, and an MLP, each pre-normalised."""

    def __init__(self, width: int, heads: int, shift: int, drop_path: float, settings: SwinSettings) -> None:
        super().__init__()
        self.window = settings.window
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, settings)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(settings.mlp_ratio * width), settings.dropout)

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
        drop_paths: Sequence[float],
        with_downsample: bool,
        use_checkpoint: bool,
        settings: SwinSettings,
    ) -> None:
        super().__init__()
        self.window = settings.window
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, settings.window // 2 * (i % 2), rate, settings) for i, rate in enumerate(drop_paths)
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
    """A convolution of whole patches and a norm; images are zero-padded at the right and at the bottom."""

    def __init__(self, width: int, patch: int, with_norm: bool) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width) if with_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ⌈H/patch⌉, ⌈W/patch⌉, C) of images (B, 3, H, W)."""
        x = F.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch))
        x = self.proj(x).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


class SwinTransformer(Backbone):
    """Feature maps of stride patch · 2^i for stages i, normalised by ``norm<i>``.

    Args:
        settings: widths, depths and windows.
        outputs: names of the maps to return, by stage.
        norm_stages: stages that have a norm, by default those that are returned.
        use_checkpoint: compute activations of the blocks again in the backward pass instead of keeping them.
    """

    absolute_pos_embed: Tensor

    def __init__(
        self,
        settings: SwinSettings,
        outputs: Mapping[int, str],
        norm_stages: Sequence[int] | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        stages = len(settings.depths)
        self.patch_embed = PatchEmbedding(settings.width, settings.patch, settings.patch_norm)
        self.has_positions = settings.position_grid > 0
        if self.has_positions:
            grid = torch.zeros(1, settings.width, settings.position_grid, settings.position_grid)
            self.absolute_pos_embed = nn.Parameter(nn.init.trunc_normal_(grid, std=0.02))
        self.pos_drop = nn.Dropout(settings.dropout)
        blocks = sum(settings.depths)
        rates = iter([settings.drop_path * block / max(blocks - 1, 1) for block in range(blocks)])
        self.layers = nn.ModuleList(
            SwinStage(
                settings.width * 2**stage,
                settings.heads[stage],
                [next(rates) for _ in range(settings.depths[stage])],
                with_downsample=stage + 1 < stages,
                use_checkpoint=use_checkpoint,
                settings=settings,
            )
            for stage in range(stages)
        )
        self.apply(_init_linear)
        self.outputs = dict(sorted(outputs.items()))
        self._out_features = list(self.outputs.values())
        self._out_feature_channels = {name: settings.width * 2**stage for stage, name in self.outputs.items()}
        self._out_feature_strides = {name: settings.patch * 2**stage for stage, name in self.outputs.items()}
        for stage in self.outputs if norm_stages is None else norm_stages:
            self.add_module(f"norm{stage}", nn.LayerNorm(settings.width * 2**stage))

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps by name from images (B, 3, H, W)."""
        x = self.patch_embed(x)
        if self.has_positions:
            grid = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic", align_corners=False)
            x = x + grid.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        results = {}
        for stage, layer in enumerate(self.layers):
            x = layer(x)
            if stage in self.outputs:
                name = self.outputs[stage]
                results[name] = self.get_submodule(f"norm{stage}")(x).permute(0, 3, 1, 2).contiguous()
            if stage == max(self.outputs):
                break
            x = layer.downsample(x)
        return results


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
