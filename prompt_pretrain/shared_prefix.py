"""The text transformer evaluated on a prefix tree: exact, and several times cheaper than 77 tokens per class.

The trunk (in the default layout ``[SOT] v1 … vM``) runs once for all classes; its keys and values are all that the
nodes below it need. The nodes run through every linear layer as one packed (T, W) matrix. In the last block only the
EOT nodes are carried on, since nothing else is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_pretrain.frozen_layers import layer_norm, quick_gelu
from prompt_pretrain.prefix_tree import PrefixTree
from prompt_pretrain.text_tower import TextTower
from prompt_pretrain.tree_attention import tree_attention


@dataclass(frozen=True, eq=False)
class _Block:
    """One residual attention block with its linear weights in the type they are multiplied in."""

    module: Any  # open_clip's ResidualAttentionBlock, whose attributes nn.Module hides
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    fc: tuple[Tensor, Tensor]
    proj: tuple[Tensor, Tensor]
    heads: int
    dtype: torch.dtype

    @classmethod
    def of(cls, module: Any, dtype: torch.dtype) -> "_Block":
        def cast(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return weight.to(dtype), bias.to(dtype)

        attn, mlp = module.attn, module.mlp
        return cls(
            module,
            cast(attn.in_proj_weight, attn.in_proj_bias),
            cast(attn.out_proj.weight, attn.out_proj.bias),
            cast(mlp.c_fc.weight, mlp.c_fc.bias),
            cast(mlp.c_proj.weight, mlp.c_proj.bias),
            attn.num_heads,
            dtype,
        )

    def norm_1(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.module.ln_1, self.dtype)

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        return x + self.module.ls_1(F.linear(attended, *self.out))

    def add_mlp(self, x: Tensor) -> Tensor:
        hidden = F.linear(layer_norm(x, self.module.ln_2, self.dtype), *self.fc)
        gelu = self.module.mlp.gelu
        hidden = quick_gelu(hidden) if isinstance(gelu, QuickGELU) else gelu(hidden)
        return x + self.module.ls_2(F.linear(hidden, *self.proj))


class SharedPrefixTransformer:
    """A frozen causal text tower, ready to run prefix trees with linear layers in ``dtype``.

    The residual stream, normalisation, softmax and pooled features stay in float32.
    """

    def __init__(self, tower: TextTower, dtype: torch.dtype) -> None:
        self.tower = tower
        self.dtype = dtype
        self.blocks = [_Block.of(block, dtype) for block in tower.blocks]

    def run_trunk(
        self, tokens: Tensor, ctx_index: Tensor, ctx: Tensor | None, deep_ctx: Sequence[Tensor] = ()
    ) -> Tensor:
        """Keys and values of the trunk in every layer: (layers, P, 2W), P may be 0.

        Args:
            tokens: (P,) token ids; ctx_index: (P,) which row of ``ctx`` (M, W) stands there, -1 for a token.
            deep_ctx: (M, W) vectors that replace the states of the context before layer 1, 2, ….
        """
        slots = (ctx_index >= 0).nonzero().squeeze(1)
        x = self._embed(tokens, torch.arange(len(tokens), device=tokens.device), slots, ctx_index[slots], ctx)
        attend = partial(F.scaled_dot_product_attention, is_causal=True)
        keys_values = []
        for index, block in enumerate(self.blocks):
            if 0 < index <= len(deep_ctx):
                x = x.index_copy(0, slots, deep_ctx[index - 1].float()[ctx_index[slots]])
            packed = F.linear(block.norm_1(x), *block.qkv)
            keys_values.append(packed[:, x.shape[1] :])
            if index + 1 < len(self.blocks):
                q, k, v = packed.unflatten(1, (3, block.heads, -1)).permute(1, 2, 0, 3).unsqueeze(1)  # (1, H, P, d)
                attended = attend(q, k, v) if len(tokens) else q
                x = block.add_mlp(block.add_attention(x, attended.squeeze(0).transpose(0, 1).flatten(1)))
        return torch.stack(keys_values)

    def run_tree(self, tree: PrefixTree, trunk: Tensor, ctx: Tensor | None) -> Tensor:
        """Text features (R, D) float32 of the tree's rows.

        Args:
            trunk: result of :meth:`run_trunk`.
            ctx: context vectors of slots below the trunk, (M, W) or (N, M, W).
        """
        x = self._embed(tree.tokens, tree.positions, tree.ctx_nodes, tree.ctx_rows, ctx)
        *inner, last = zip(self.blocks, trunk.unbind(0), strict=True)
        for block, keys_values in inner:
            packed = F.linear(block.norm_1(x), *block.qkv)
            x = block.add_attention(x, tree_attention(packed, keys_values, tree.levels, block.heads))
            x = block.add_mlp(x)
        block, keys_values = last
        normal = block.norm_1(x)
        width = x.shape[1]
        weight, bias = block.qkv
        queries = F.linear(normal[tree.leaves], weight[:width], bias[:width])
        packed = F.linear(normal, weight[width:], bias[width:])
        attended = tree_attention(packed, keys_values, tree.leaf_levels, block.heads, queries)
        x = block.add_mlp(block.add_attention(x[tree.leaves], attended))
        return self._project(x)[tree.leaf_of_row]

    def bytes_per_node(self) -> int:
        """Bytes that one node saves for backward: normalised inputs, query, key, value and the MLP's hidden layer."""
        width, hidden = self.tower.width, self.blocks[0].fc[0].shape[0]
        values = 5 * width + hidden
        return len(self.blocks) * (values * torch.empty(0, dtype=self.dtype).element_size() + 16)

    def _embed(self, tokens: Tensor, positions: Tensor, slots: Tensor, rows: Tensor, ctx: Tensor | None) -> Tensor:
        x = self.tower.token_embedding.weight[tokens].float()
        if ctx is not None and len(slots):
            x = x.index_copy(0, slots, ctx.flatten(0, -2).float()[rows])
        return x + self.tower.positional_embedding[positions].float()

    def _project(self, x: Tensor) -> Tensor:
        x = layer_norm(x, self.tower.ln_final, torch.float32)
        projection = self.tower.projection
        if projection is None:
            return x
        if isinstance(projection, nn.Linear):
            bias = None if projection.bias is None else projection.bias.float()
            return F.linear(x, projection.weight.float(), bias)
        return x @ projection.float()
