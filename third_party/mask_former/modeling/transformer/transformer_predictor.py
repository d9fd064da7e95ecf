"""From image features to class scores and mask embeddings of a set of queries (MaskFormer, section 3.3)."""

from itertools import pairwise
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from mask_former.modeling.transformer.position_encoding import PositionEmbeddingSine
from mask_former.modeling.transformer.transformer import Transformer

__all__ = ["MLP", "TransformerPredictor"]


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(first, second) for first, second in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class TransformerPredictor(nn.Module):
    """Queries that attend to a feature map; each gives class logits and the mask of its dot product with pixels.

    ``mask_classification=False`` leaves the class logits out: then query k is class k (per-pixel baseline).
    """

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dropout: float,
        dim_feedforward: int,
        enc_layers: int,
        dec_layers: int,
        pre_norm: bool,
        deep_supervision: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        """Build the transformer.

        Args:
            in_channels: channels of the feature map.
            num_classes: K; the logits have one more, for "no object".
            hidden_dim: C, width of the transformer.
            num_queries: Q.
            deep_supervision: also return the output of every other decoder layer.
            mask_dim: channels of the pixel embeddings.
            enforce_input_project: project the map even where ``in_channels`` is ``hidden_dim``.
        """
        super().__init__()
        self.mask_classification = mask_classification
        self.aux_loss = deep_supervision
        self.num_queries = num_queries
        self.pe_layer = PositionEmbeddingSine(hidden_dim // 2, normalize=True)
        self.transformer = Transformer(
            d_model=hidden_dim,
            nhead=nheads,
            num_encoder_layers=enc_layers,
            num_decoder_layers=dec_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            normalize_before=pre_norm,
            return_intermediate_dec=deep_supervision,
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj: nn.Module = nn.Sequential()
        if in_channels != hidden_dim or enforce_input_project:
            self.input_proj = Conv2d(in_channels, hidden_dim, kernel_size=1)
            weight_init.c2_xavier_fill(self.input_proj)
        if mask_classification:
            self.class_embed: nn.Module = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "nheads": node.NHEADS,
            "dropout": node.DROPOUT,
            "dim_feedforward": node.DIM_FEEDFORWARD,
            "enc_layers": node.ENC_LAYERS,
            "dec_layers": node.DEC_LAYERS,
            "pre_norm": node.PRE_NORM,
            "deep_supervision": node.DEEP_SUPERVISION,
            "enforce_input_project": node.ENFORCE_INPUT_PROJ,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        }

    def forward(self, x: Tensor, mask_features: Tensor) -> dict[str, Any]:
        """Predictions of the last decoder layer, and of the others under ``aux_outputs``.

        Args:
            x: (B, in_channels, H, W) feature map.
            mask_features: (B, mask_dim, h, w) pixel embeddings.
        Returns:
            ``pred_logits`` (B, Q, K + 1), unless without classification, and ``pred_masks`` (B, Q, h, w) logits.
        """
        levels, _ = self.transformer(self.input_proj(x), self.query_embed.weight, self.pe_layer(x))
        outputs = [self.predict(queries, mask_features) for queries in levels]
        result: dict[str, Any] = outputs[-1]
        if self.aux_loss:
            result["aux_outputs"] = outputs[:-1]
        return result

    def predict(self, queries: Tensor, mask_features: Tensor) -> dict[str, Any]:
        """``pred_masks`` and, with classification, ``pred_logits`` of queries (B, Q, C)."""
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), mask_features)
        if not self.mask_classification:
            return {"pred_masks": masks}
        return {"pred_logits": self.class_embed(queries), "pred_masks": masks}
