"""Where the locations of feature maps lie in the image, and in which order the losses count them.

The order is level-major: level 0 of image 0, level 0 of image 1, …, level 1 of image 0, …; rows of a map one after the
other. So the flat index of row i and column j is ``B * sum(M_k, k < level) + image * M_level + i * W_level + j``, where
``M_k = H_k * W_k`` and B is the number of images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["flatten_levels", "level_axes", "level_locations", "level_sizes"]

Size = tuple[int, int]  # height, width of a feature map


def level_axes(height: int, width: int, stride: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """(W,) and (H,) float32 coordinates x and y of a map's columns and rows in pixels."""
    xs, ys = ((torch.arange(side, device=device) * stride + stride // 2).float() for side in (width, height))
    return xs, ys


def level_locations(height: int, width: int, stride: int, device: torch.device | str | None = None) -> Tensor:
    """(H * W, 2) float32 centres (x, y) of a map's locations in pixels, row by row."""
    xs, ys = level_axes(height, width, stride, device)
    rows, columns = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack((columns, rows), dim=-1).reshape(-1, 2)


def level_sizes(features: Sequence[Tensor]) -> list[Size]:
    """(height, width) of each map."""
    return [(feature.shape[-2], feature.shape[-1]) for feature in features]


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """(M, K) float32, level-major, of maps (B, K, H, W) of each level."""
    return torch.cat([each.float().permute(0, 2, 3, 1).flatten(0, 2) for each in maps])
