"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1) on ``grid_sample``."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_pretrain.errors import InputError

LevelShapes = Sequence[tuple[int, int]]  # (height, width) of each feature level


def deformable_attention(value: Tensor, shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples of every level, for each query and head.

    One ``grid_sample`` per level; outside a map its value is zero.

    Args:
        value: (B, S, M, D), the levels flattened row by row and joined; M heads of D channels.
        shapes: of the levels, S = sum of their areas.
        locations: (B, Q, M, L, P, 2) as (x, y) in [0, 1] of each map, edge to edge.
        weights: (B, Q, M, L, P), sum 1 over the last two.
    Returns:
        (B, Q, M * D).
    """
    batch, _, heads, width = value.shape
    num_queries, num_points = locations.shape[1], locations.shape[4]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * M, Q, L, P, 2), in grid_sample's [-1, 1]
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, num_queries, -1, num_points)
    total = value.new_zeros(batch * heads, width, num_queries)
    for level, (level_value, (height, columns)) in enumerate(
        zip(value.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
    ):
        maps = level_value.permute(0, 2, 3, 1).reshape(batch * heads, width, height, columns)
        samples = F.grid_sample(maps, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (samples * weights[:, :, :, level]).sum(-1)  # (B * M, D, Q)
    return total.view(batch, heads * width, num_queries).transpose(1, 2)


class MSDeformAttn(nn.Module):
    """Each query looks at ``n_points`` learned places round its reference in each level, with learned weights."""

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        if d_model % n_heads:
            raise InputError(f"MODEL.DETR.HIDDEN_DIM {d_model} is no multiple of MODEL.DETR.NHEADS {n_heads}")
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as rays, a direction per head and a step per point; weights start equal (appendix A.4)."""
        angles = torch.arange(self.n_heads) * (2 * math.pi / self.n_heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)  # onto the unit square
        steps = torch.arange(1, self.n_points + 1).view(1, 1, -1, 1)
        offsets = (rays.view(-1, 1, 1, 2) * steps).expand(-1, self.n_levels, -1, -1)  # (M, L, P, 2)
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_(offsets.flatten())
            nn.init.zeros_(self.attention_weights.weight)
            nn.init.zeros_(self.attention_weights.bias)
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, reference: Tensor, features: Tensor, shapes: LevelShapes, padding: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C).
            reference: (B, Q, L, 2) points or (B, Q, L, 4) boxes (cx, cy, w, h), in [0, 1] of each padded map. Offsets
                count cells of the map round a point, and 1/P of half a side round a box.
            features: (B, S, C), flattened levels of ``shapes``.
            padding: (B, S) bool, True where the batch is padded: those features count as zero.
        Returns:
            (B, Q, C).
        """
        batch, num_queries, _ = query.shape
        layout = (batch, num_queries, self.n_heads, self.n_levels, self.n_points)
        value = self.value_proj(features)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        offsets = self.sampling_offsets(query).view(*layout, 2)
        weights = self.attention_weights(query).view(*layout[:3], -1).softmax(dim=-1).view(layout)
        centres = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            scale = 1 / query.new_tensor([(width, height) for height, width in shapes])[:, None]  # (L, 1, 2)
        else:
            scale = reference[:, :, None, :, None, 2:] * (0.5 / self.n_points)
        value = value.view(batch, -1, self.n_heads, value.shape[-1] // self.n_heads)
        return self.output_proj(deformable_attention(value, shapes, centres + offsets * scale, weights))
