"""Where things are: padding masks, sine encodings of maps and of boxes, reference points."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of ``x``, which is clamped to [0, 1] and both of whose sides are kept above ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def padding_mask(image_sizes: Sequence[tuple[int, int]], batch: Tensor) -> Tensor:
    """(B, H, W) bool: True outside each image (height, width) of the padded ``batch`` (B, C, H, W)."""
    height, width = batch.shape[-2:]
    heights, widths = (torch.tensor(sides, device=batch.device) for sides in zip(*image_sizes, strict=True))
    below = torch.arange(height, device=batch.device) >= heights[:, None]
    right = torch.arange(width, device=batch.device) >= widths[:, None]
    return below[:, :, None] | right[:, None, :]


def resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The bool mask (B, H, W) on a smaller map, by its nearest pixels."""
    return F.interpolate(mask[:, None].float(), size=size)[:, 0] > 0.5


def valid_ratio(mask: Tensor) -> Tensor:
    """(B, 2): the part of the map's width and height that is image, of masks (B, H, W)."""
    valid = ~mask
    return torch.stack([valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)], dim=-1)


def frequencies(count: int, like: Tensor) -> Tensor:
    """Wave lengths of ``count`` sine and cosine channels, a pair each: 10000^(2i / count)."""
    index = torch.arange(count, device=like.device)
    return 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / count)


def waves(positions: Tensor, count: int) -> Tensor:
    """(..., count): sine at even and cosine at odd channels of positions given in radians."""
    angles = positions[..., None] / frequencies(count, positions)
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


class PositionEmbeddingSine(nn.Module):
    """2-D sine encoding of the cells of a map, relative to the image within the padding."""

    def __init__(self, num_pos_feats: int) -> None:
        super().__init__()
        self.num_pos_feats = num_pos_feats  # channels for each of y and x

    def forward(self, mask: Tensor) -> Tensor:
        """(B, 2 * num_pos_feats, H, W) for a padding mask (B, H, W); the channels of y come first."""
        valid = (~mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)
        # Cell centres as a share of the image, times 2 pi.
        y = (y - 0.5) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x - 0.5) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        encoded = torch.cat([waves(y, self.num_pos_feats), waves(x, self.num_pos_feats)], dim=-1)
        return encoded.permute(0, 3, 1, 2)


def encode_boxes(boxes: Tensor, channels: int) -> Tensor:
    """(..., channels): sine encoding of logits of boxes (..., 4), a quarter of the channels for each number."""
    return waves(boxes.sigmoid() * (2 * math.pi), channels // 4).flatten(-2)


def cell_centres(shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """(B, S, L, 2): the centre of every cell of all levels, as (x, y) in [0, 1] of each level's padded map.

    Args:
        shapes: (height, width) of the L levels, S cells together.
        valid_ratios: (B, L, 2), see `valid_ratio`.
    """
    centres = [grid_of(shape, valid_ratios) / valid_ratios[:, None, i] for i, shape in enumerate(shapes)]
    return torch.cat(centres, dim=1)[:, :, None] * valid_ratios[:, None]


def grid_of(shape: tuple[int, int], like: Tensor) -> Tensor:
    """(H * W, 2): cell centres (x, y) of a map in [0, 1], row by row."""
    y, x = ((torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side for side in shape)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
