"""One view of the text towers of open_clip: where their weights lie, and whether the exact fast path applies."""

from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class TextTower:
    """The parts of a causal CLIP text transformer.

    Attributes:
        module: the model or sub-module that owns them.
        token_embedding, positional_embedding: (V, W) and (77, W).
        blocks: the residual attention blocks.
        projection: (W, D) matrix, ``nn.Linear`` or None.
    """

    module: Any
    token_embedding: nn.Embedding
    positional_embedding: Tensor
    blocks: list[Any]
    ln_final: nn.LayerNorm
    projection: Tensor | nn.Linear | None
    attn_mask: Tensor | None
    pool_type: str
    cls_emb: Tensor | None

    @property
    def width(self) -> int:
        return self.token_embedding.embedding_dim

    @property
    def heads(self) -> int:
        return self.blocks[0].attn.num_heads

    def project(self, x: Tensor) -> Tensor:
        """Text features (N, D) of pooled states (N, W)."""
        x = self.ln_final(x)
        if self.projection is None:
            return x
        if isinstance(self.projection, nn.Linear):
            return self.projection(x)
        return x @ self.projection


def find_text_tower(model: nn.Module) -> TextTower | None:
    """The text tower of an open_clip model, or None where it is not one of open_clip's own transformers."""
    text: Any = model if isinstance(model, open_clip.CLIP) else getattr(model, "text", None)
    if not isinstance(text, open_clip.CLIP | TextTransformer):
        return None
    is_clip = isinstance(text, open_clip.CLIP)
    return TextTower(
        module=text,
        token_embedding=text.token_embedding,
        positional_embedding=text.positional_embedding,
        blocks=list(text.transformer.resblocks),
        ln_final=text.ln_final,
        projection=text.text_projection,
        attn_mask=text.attn_mask,
        pool_type=text.text_pool_type if is_clip else text.pool_type,
        cls_emb=None if is_clip else text.cls_emb,
    )


def obstacle_to_prefix_sharing(tower: TextTower | None) -> str | None:
    """Why the shared-prefix path would not be exact for this tower; None where it is.

    It is exact for the causal CLIP transformer that pools the EOT token: pre-norm blocks of standard attention and a
    GELU or QuickGELU MLP. Anything else must take the plain path.
    """
    if tower is None:
        return "its text tower is not one of open_clip's transformers"
    if tower.attn_mask is None or not torch.equal(tower.attn_mask.isinf(), _strictly_upper(tower.attn_mask)):
        return "its attention is not causal"
    if tower.cls_emb is not None:
        return "it appends a class token behind the text"
    if tower.pool_type not in ("argmax", "eos"):
        return f"it pools {tower.pool_type!r}, not the EOT token"
    norms = [norm for block in tower.blocks for norm in (block.ln_1, block.ln_2)]
    if not all(type(block) is ResidualAttentionBlock for block in tower.blocks):
        return "its blocks are not standard residual attention blocks"
    if not all(type(norm) in (LayerNorm, LayerNormFp32, nn.LayerNorm) for norm in norms):
        return "its normalisation is not LayerNorm"
    for block in tower.blocks:
        if type(block.attn) is not nn.MultiheadAttention or block.attn.in_proj_weight is None:
            return "its attention is not nn.MultiheadAttention"
        if type(block.mlp.gelu) not in (QuickGELU, nn.GELU):
            return f"its activation is {type(block.mlp.gelu).__name__}"
    return None


def _strictly_upper(mask: Tensor) -> Tensor:
    return torch.ones_like(mask, dtype=torch.bool).triu(1)
