"""Sine position encodings of feature maps (DETR, arXiv 2005.12872, appendix A.4)."""

import math

import torch
from torch import Tensor, nn

__all__ = ["PositionEmbeddingSine"]

_EPSILON = 1e-6


class PositionEmbeddingSine(nn.Module):
    """Sines and cosines of the row and of the column of each position.

    Args:
        num_pos_feats: N, channels per axis.
        temperature: of the geometric series of wavelengths.
        normalize: measure positions as fractions of the map times ``scale``, instead of in cells.
        scale: 2π if not given.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000,
        normalize: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if scale is not None and not normalize:
            raise ValueError("PositionEmbeddingSine got a scale without normalize=True, which would have no effect")
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = 2 * math.pi if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2N, H, W) encodings of a map x (B, C, H, W): N channels of the row, then N of the column."""
        batch, _, height, width = x.shape
        rows, columns = (self._encode(length, x.device) for length in (height, width))
        rows = rows[:, :, None].expand(-1, -1, width)
        columns = columns[:, None, :].expand(-1, height, -1)
        return torch.cat([rows, columns]).expand(batch, -1, -1, -1)

    def _encode(self, length: int, device: torch.device) -> Tensor:
        """(N, length): sine in even and cosine in odd channels."""
        position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        if self.normalize:
            position = position / (length + _EPSILON) * self.scale
        pair = torch.arange(self.num_pos_feats, dtype=torch.float32, device=device) // 2
        angle = position / (self.temperature ** (2 * pair / self.num_pos_feats))[:, None]
        angle[0::2] = angle[0::2].sin()
        angle[1::2] = angle[1::2].cos()
        return angle
