"""Prompts merged into a prefix tree: every distinct beginning of a token row is one node, computed once.

In a causal transformer the state of a token depends on the tokens before it alone, so rows that begin alike share the
states of that beginning. The nodes that all rows share (``[SOT] v1 … vM`` in the default layout) form the *trunk*; the
others stand below it in levels of equal depth.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prompt_pretrain.prompt_tokens import PromptTokens


@dataclass(frozen=True)
class QueryLevel:
    """Queries ``start:stop`` of a query set, all of one depth below the trunk: a level of the tree or a part of it.

    ``ancestors`` (stop - start, depth + 1): the nodes each one attends to beside the trunk, root first, itself last.
    """

    start: int
    stop: int
    ancestors: Tensor

    def to(self, device: torch.device) -> "QueryLevel":
        return QueryLevel(self.start, self.stop, self.ancestors.to(device))


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """The T nodes below the trunk, ordered by level, and the leaves (EOT nodes) of its R rows.

    Attributes:
        tokens: (T,) token ids, 0 at context slots.
        positions: (T,) position of each node in its row, for the positional embedding.
        ctx_nodes: (S,) nodes that are context slots.
        ctx_rows: (S,) which context vector stands there, as a row of ``ctx.reshape(-1, W)``.
        levels: every node as a query, level by level.
        leaves: (R,) leaf nodes ordered by level; ``leaf_levels`` are the same as queries.
        leaf_of_row: (R,) for each row the index of its leaf in ``leaves``.
    """

    tokens: Tensor
    positions: Tensor
    ctx_nodes: Tensor
    ctx_rows: Tensor
    levels: tuple[QueryLevel, ...]
    leaves: Tensor
    leaf_levels: tuple[QueryLevel, ...]
    leaf_of_row: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> "PrefixTree":
        return PrefixTree(
            self.tokens.to(device),
            self.positions.to(device),
            self.ctx_nodes.to(device),
            self.ctx_rows.to(device),
            tuple(level.to(device) for level in self.levels),
            self.leaves.to(device),
            tuple(level.to(device) for level in self.leaf_levels),
            self.leaf_of_row.to(device),
        )


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The distinct rows of a set of prompts in lexicographic order, so that neighbours share beginnings.

    Attributes:
        codes: (R, L) int64: a token id, ``_CTX`` + index of a context vector, or -1 behind the end.
        lengths: (R,) tokens of each row.
        row_of_prompt: (N,) for each prompt its row.
        trunk: number of leading tokens that all rows share; at least one token of every row stays outside.
    """

    codes: np.ndarray
    lengths: np.ndarray
    row_of_prompt: np.ndarray
    trunk: int

    @classmethod
    def from_prompts(cls, prompts: PromptTokens, class_specific: bool) -> "PromptRows":
        """Merge equal prompts (classes of one name). With class-specific contexts nothing behind one is shared."""
        tokens, slots = prompts.tokens.cpu().numpy(), prompts.ctx_index.cpu().numpy()
        lengths = prompts.lengths.cpu().numpy()
        vectors = slots + np.arange(len(slots))[:, None] * prompts.n_ctx if class_specific else slots
        codes = np.where(slots >= 0, _CTX + vectors, tokens)
        codes[np.arange(codes.shape[1]) >= lengths[:, None]] = -1
        codes, first, row_of_prompt = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        lengths = lengths[first]
        shared = (codes == codes[:1]).all(axis=0)
        trunk = len(shared) if shared.all() else int(shared.argmin())
        return cls(codes, lengths, row_of_prompt.reshape(-1), min(trunk, int(lengths.min()) - 1))

    def trunk_codes(self) -> tuple[Tensor, Tensor]:
        """Token ids (P,) of the trunk and the context vector that stands at each place (-1 for tokens)."""
        codes = torch.from_numpy(self.codes[0, : self.trunk].copy())
        is_ctx = codes >= _CTX
        return codes.masked_fill(is_ctx, 0), torch.where(is_ctx, codes - _CTX, -1)

    def new_nodes(self) -> np.ndarray:
        """(R,) nodes that each row adds to those of the rows before it."""
        return _new_node_mask(self.codes, self.lengths, self.trunk).sum(axis=1)

    def tree(self, start: int, stop: int, level_entries: int) -> PrefixTree:
        """The prefix tree of rows ``start:stop``, its levels cut into parts of at most ``level_entries`` ancestors."""
        return _build_tree(self.codes[start:stop], self.lengths[start:stop], self.trunk, level_entries)


_CTX = 1 << 32  # codes from here on are context vectors


def _new_node_mask(codes: np.ndarray, lengths: np.ndarray, trunk: int) -> np.ndarray:
    """(R, L) True where a row in lexicographic order leaves the path of the row before it."""
    new = np.ones_like(codes, dtype=bool)
    new[1:] = np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1)
    new &= np.arange(codes.shape[1]) < lengths[:, None]
    new[:, :trunk] = False
    return new


def _build_tree(codes: np.ndarray, lengths: np.ndarray, trunk: int, level_entries: int) -> PrefixTree:
    depth = int(lengths.max())
    new = _new_node_mask(codes, lengths, trunk)[:, trunk:depth]
    codes = codes[:, trunk:depth]
    per_level = new.sum(axis=0)
    offsets = np.concatenate([[0], per_level.cumsum()])
    node = offsets[:-1] + new.cumsum(axis=0) - 1  # (R, levels): the node of each row at each level

    node_codes = np.concatenate([codes[new[:, level], level] for level in range(new.shape[1])])
    leaf_depth = lengths - trunk - 1
    order = np.argsort(leaf_depth, kind="stable")
    node_paths = [node[new[:, level], : level + 1] for level in range(new.shape[1])]
    leaf_paths = [node[order[leaf_depth[order] == level], : level + 1] for level in range(new.shape[1])]
    leaf_of_row = np.empty(len(order), dtype=np.int64)
    leaf_of_row[order] = np.arange(len(order))
    is_ctx = node_codes >= _CTX
    return PrefixTree(
        tokens=torch.from_numpy(np.where(is_ctx, 0, node_codes)),
        positions=torch.from_numpy(np.repeat(np.arange(trunk, depth), per_level)),
        ctx_nodes=torch.from_numpy(np.flatnonzero(is_ctx)),
        ctx_rows=torch.from_numpy(node_codes[is_ctx] - _CTX),
        levels=_cut_levels(node_paths, level_entries),
        leaves=torch.from_numpy(node[order, leaf_depth[order]]),
        leaf_levels=_cut_levels(leaf_paths, level_entries),
        leaf_of_row=torch.from_numpy(leaf_of_row),
    )


def _cut_levels(paths: list[np.ndarray], entries: int) -> tuple[QueryLevel, ...]:
    """Queries numbered through the (n, k) ancestor tables of all levels, at most ``entries`` of n * k in a part."""
    parts, start = [], 0
    for table in paths:
        rows = max(1, entries // table.shape[1])
        for first in range(0, len(table), rows):
            part = torch.from_numpy(table[first : first + rows].copy())
            parts.append(QueryLevel(start + first, start + first + len(part), part))
        start += len(table)
    return tuple(parts)
