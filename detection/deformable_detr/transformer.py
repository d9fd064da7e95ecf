"""Encoder and decoder of Deformable DETR (arXiv 2010.04159), one or two stages, with or without box refinement.

Parameter names are the published ones.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.deformable_detr.attention import LevelShapes, MSDeformAttn
from detection.deformable_detr.positions import cell_centres, encode_boxes, grid_of, inverse_sigmoid, valid_ratio


class EncoderLayer(nn.Module):
    """Deformable self-attention over all cells of all levels, then a two-layer network; norms come after."""

    def __init__(self, d_model: int, d_ffn: int, dropout: float, n_levels: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, shapes: LevelShapes, padding: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x + pos, reference, x, shapes, padding)))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class Encoder(nn.Module):
    def __init__(self, layer: EncoderLayer, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, shapes: LevelShapes, padding: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, pos, reference, shapes, padding)
        return x


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention to the encoder's output, a two-layer network."""

    def __init__(self, d_model: int, d_ffn: int, dropout: float, n_levels: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.cross_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = nn.MultiheadAttention(d_model, n_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, pos: Tensor, reference: Tensor, memory: Tensor, shapes: LevelShapes, padding: Tensor
    ) -> Tensor:
        query = x + pos
        x = self.norm2(x + self.dropout(self.self_attn(query, query, x, need_weights=False)[0]))
        x = self.norm1(x + self.dropout(self.cross_attn(x + pos, reference, memory, shapes, padding)))
        return self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class Decoder(nn.Module):
    """The layers; ``bbox_embed`` (box refinement) and ``class_embed`` (two stages) are the detector's own heads.

    The detector puts them here because published checkpoints hold them under both names.
    """

    bbox_embed: nn.ModuleList | None
    class_embed: nn.ModuleList | None

    def __init__(self, layer: DecoderLayer, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.bbox_embed = None
        self.class_embed = None

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: LevelShapes,
        valid_ratios: Tensor,
        padding: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Output (B, Q, C) of each layer, and the references (B, Q, 2 or 4) that each layer started from."""
        outputs, references = [], []
        for i, layer in enumerate(self.layers):
            references.append(reference)
            ratios = valid_ratios if reference.shape[-1] == 2 else torch.cat([valid_ratios, valid_ratios], dim=-1)
            x = layer(x, pos, reference[:, :, None] * ratios[:, None], memory, shapes, padding)
            outputs.append(x)
            if self.bbox_embed is not None:
                reference = refined(self.bbox_embed[i](x), reference).sigmoid().detach()
        return outputs, references


def refined(delta: Tensor, reference: Tensor) -> Tensor:
    """Logits (..., 4) of boxes: ``delta`` plus the logits of a reference point (its centre only) or box."""
    start = inverse_sigmoid(reference)
    if start.shape[-1] == 2:
        start = F.pad(start, (0, 2))
    return delta + start


@dataclass(frozen=True)
class TransformerOutput:
    """What the heads need.

    Attributes:
        hidden: output of each decoder layer, (B, Q, C) each.
        references: what each layer started from, (B, Q, 2 or 4) each, in [0, 1] of the image.
        first_stage: class logits (B, S, C') and box logits (B, S, 4) of every cell; two stages only.
    """

    hidden: list[Tensor]
    references: list[Tensor]
    first_stage: tuple[Tensor, Tensor] | None


class DeformableTransformer(nn.Module):
    """Encoder, choice of the queries, decoder.

    Args:
        num_queries: boxes that the first stage hands to the second; unused with one stage.
    """

    def __init__(
        self,
        *,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        num_feature_levels: int = 4,
        num_points: int = 4,
        two_stage: bool = False,
        num_queries: int = 300,
    ) -> None:
        super().__init__()
        self.d_model, self.two_stage, self.num_queries = d_model, two_stage, num_queries
        layer = (d_model, dim_feedforward, dropout, num_feature_levels, nhead, num_points)
        self.encoder = Encoder(EncoderLayer(*layer), num_encoder_layers)
        self.decoder = Decoder(DecoderLayer(*layer), num_decoder_layers)
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, d_model))
        if two_stage:
            self.enc_output = nn.Linear(d_model, d_model)
            self.enc_output_norm = nn.LayerNorm(d_model)
            self.pos_trans = nn.Linear(2 * d_model, 2 * d_model)
            self.pos_trans_norm = nn.LayerNorm(2 * d_model)
        else:
            self.reference_points = nn.Linear(d_model, 2)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        if not self.two_stage:
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def forward(
        self, maps: list[Tensor], masks: list[Tensor], positions: list[Tensor], query_embed: Tensor | None
    ) -> TransformerOutput:
        """
        Args:
            maps: features (B, C, H_l, W_l) of the levels.
            masks: (B, H_l, W_l) bool, True on padding.
            positions: (B, C, H_l, W_l).
            query_embed: (Q, 2C), positions and contents of the queries; None with two stages.
        """
        shapes = [(level.shape[2], level.shape[3]) for level in maps]
        ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)  # (B, L, 2)
        features = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)  # (B, S, C)
        padding = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        pos = torch.cat(
            [p.flatten(2).transpose(1, 2) + e for p, e in zip(positions, self.level_embed, strict=True)], dim=1
        )
        memory = self.encoder(features, pos, cell_centres(shapes, ratios), shapes, padding)

        first_stage = None
        if self.two_stage:
            first_stage = self._first_stage(memory, padding, shapes, ratios)
            query_pos, content, reference = self._best_as_queries(*first_stage)
        else:
            assert query_embed is not None, "one stage needs query_embed"
            query_pos, content = query_embed.expand(len(memory), -1, -1).split(self.d_model, dim=-1)
            reference = self.reference_points(query_pos).sigmoid()
        hidden, references = self.decoder(content, query_pos, reference, memory, shapes, ratios, padding)
        return TransformerOutput(hidden, references, first_stage)

    def _first_stage(
        self, memory: Tensor, padding: Tensor, shapes: LevelShapes, ratios: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class logits (B, S, C') and box logits (B, S, 4) of every cell (appendix A.4 of the paper).

        Cells of padding, and those within 1 % of the border, see a zero feature and get an infinite box logit.
        """
        boxes = []
        for level, shape in enumerate(shapes):
            centres = grid_of(shape, memory) / ratios[:, None, level]
            boxes.append(torch.cat([centres, torch.full_like(centres, 0.05 * 2**level)], dim=-1))
        start = torch.cat(boxes, dim=1)
        unusable = padding | ((start <= 0.01) | (start >= 0.99)).any(dim=-1)
        start = torch.log(start / (1 - start)).masked_fill(unusable[..., None], float("inf"))
        features = self.enc_output_norm(self.enc_output(memory.masked_fill(unusable[..., None], 0.0)))
        assert self.decoder.class_embed is not None and self.decoder.bbox_embed is not None
        return self.decoder.class_embed[-1](features), self.decoder.bbox_embed[-1](features) + start

    def _best_as_queries(self, classes: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, contents (B, Q, C) and references (B, Q, 4) from the cells of highest logit of class 0.

        The first stage is trained with every object labelled 0, so that column is its objectness.
        """
        count = min(self.num_queries, classes.shape[1])  # a tiny image has fewer cells than queries
        best = classes[..., 0].topk(count, dim=1).indices
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        encoded = self.pos_trans_norm(self.pos_trans(encode_boxes(chosen, 2 * self.d_model)))
        query_pos, content = encoded.split(self.d_model, dim=-1)
        return query_pos, content, chosen.sigmoid()
