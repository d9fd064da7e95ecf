"""Causal attention over a prefix tree: each node attends to the trunk, its ancestors and itself. No padding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prompt_pretrain.prefix_tree import QueryLevel


def tree_attention(
    packed: Tensor, trunk: Tensor, levels: Sequence[QueryLevel], heads: int, queries: Tensor | None = None
) -> Tensor:
    """Multi-head attention of tree nodes.

    Args:
        packed: (T, 3W) query, key and value of every node, or (T, 2W) key and value where ``queries`` is given.
        trunk: (P, 2W) key and value of the trunk's tokens.
        levels: the queries by depth; they index rows of ``queries``, or of ``packed``.
        queries: (Q, W) queries of a subset of the nodes.
    Returns:
        (Q or T, W), before the output projection. Probabilities are recomputed in backward, in float32 throughout.
    """
    return _TreeAttention.apply(packed, trunk, queries, levels, heads)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, packed: Tensor, trunk: Tensor, queries: Tensor | None, levels: Sequence[QueryLevel], heads: int
    ) -> Tensor:
        width = trunk.shape[1] // 2
        q = packed[:, :width] if queries is None else queries
        key, value = packed[:, -2 * width : -width], packed[:, -width:]
        trunk_key, trunk_value = _by_head(trunk[:, :width], heads), _by_head(trunk[:, width:], heads)
        out = torch.empty(len(q), width, dtype=packed.dtype, device=packed.device)
        for level in levels:
            part = _Level(q, key, value, trunk_key, trunk_value, level, heads)
            attended = (part.trunk_probability @ trunk_value).transpose(0, 1)  # (n, H, d)
            attended = attended + (part.own_probability.unsqueeze(-1) * part.value).sum(1)
            out[level.start : level.stop] = attended.flatten(1)
        ctx.save_for_backward(packed, trunk, queries)
        ctx.levels, ctx.heads = levels, heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        packed, trunk, queries = ctx.saved_tensors
        heads, width = ctx.heads, trunk.shape[1] // 2
        q = packed[:, :width] if queries is None else queries
        key, value = packed[:, -2 * width : -width], packed[:, -width:]
        trunk_key, trunk_value = _by_head(trunk[:, :width], heads), _by_head(trunk[:, width:], heads)
        grad_trunk_key, grad_trunk_value = torch.zeros_like(trunk_key), torch.zeros_like(trunk_value)
        nodes_need_grad = ctx.needs_input_grad[0]
        if nodes_need_grad:
            grad_packed = torch.zeros(packed.shape, dtype=torch.float32, device=packed.device)
            grad_key, grad_value = grad_packed[:, -2 * width : -width], grad_packed[:, -width:]
            grad_q = grad_packed[:, :width] if queries is None else torch.empty_like(queries, dtype=torch.float32)
        for level in ctx.levels:
            part = _Level(q, key, value, trunk_key, trunk_value, level, heads)
            g = grad[level.start : level.stop].float().unflatten(1, (heads, -1))  # (n, H, d)
            g_by_head = g.transpose(0, 1)  # (H, n, d)
            trunk_score = part.trunk_probability * (g_by_head @ trunk_value.transpose(1, 2))  # (H, n, P)
            own_score = part.own_probability * (g.unsqueeze(1) * part.value).sum(-1)  # (n, k, H)
            total = trunk_score.sum(-1).T + own_score.sum(1)  # (n, H)
            trunk_score -= part.trunk_probability * total.T.unsqueeze(-1)
            own_score -= part.own_probability * total.unsqueeze(1)
            grad_trunk_key += trunk_score.transpose(1, 2) @ part.query.transpose(0, 1)
            grad_trunk_value += part.trunk_probability.transpose(1, 2) @ g_by_head
            if not nodes_need_grad:
                continue
            from_trunk = (trunk_score @ trunk_key).transpose(0, 1)
            from_own = (own_score.unsqueeze(-1) * part.key).sum(1)
            grad_q[level.start : level.stop] = (from_trunk + from_own).mul_(part.scale).flatten(1)
            to_key = own_score.unsqueeze(-1) * part.query.unsqueeze(1)  # (n, k, H, d)
            to_value = part.own_probability.unsqueeze(-1) * g.unsqueeze(1)
            ancestors = level.ancestors.flatten()
            grad_key.index_add_(0, ancestors, to_key.reshape(-1, width))
            grad_value.index_add_(0, ancestors, to_value.reshape(-1, width))
        grad_trunk = torch.cat([_by_token(grad_trunk_key), _by_token(grad_trunk_value)], dim=1).to(trunk.dtype)
        if not nodes_need_grad:
            return None, grad_trunk, None, None, None
        grad_queries = None if queries is None else grad_q.to(queries.dtype)
        return grad_packed.to(packed.dtype), grad_trunk, grad_queries, None, None


class _Level:
    """Float32 queries, keys, values and probabilities of one level of n nodes, each with k ancestors."""

    def __init__(
        self,
        q: Tensor,
        key: Tensor,
        value: Tensor,
        trunk_key: Tensor,
        trunk_value: Tensor,
        level: QueryLevel,
        heads: int,
    ) -> None:
        self.scale = trunk_key.shape[-1] ** -0.5
        self.query = q[level.start : level.stop].float().unflatten(1, (heads, -1)) * self.scale  # (n, H, d)
        self.key = key[level.ancestors].float().unflatten(2, (heads, -1))  # (n, k, H, d)
        self.value = value[level.ancestors].float().unflatten(2, (heads, -1))
        trunk_score = self.query.transpose(0, 1) @ trunk_key.transpose(1, 2)  # (H, n, P)
        own_score = (self.query.unsqueeze(1) * self.key).sum(-1)  # (n, k, H)
        probability = torch.cat([trunk_score, own_score.permute(2, 0, 1)], dim=2).softmax(dim=2)
        trunk_size = trunk_key.shape[1]
        self.trunk_probability = probability[:, :, :trunk_size]  # (H, n, P)
        self.own_probability = probability[:, :, trunk_size:].permute(1, 2, 0)  # (n, k, H)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(P, W) → (H, P, W / H) float32."""
    return x.float().unflatten(1, (heads, -1)).transpose(0, 1).contiguous()


def _by_token(x: Tensor) -> Tensor:
    """(H, P, d) → (P, W)."""
    return x.transpose(0, 1).flatten(1)
