"""Class names and a prompt to text features: the exact fast path, and the plain path it is checked against."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prompt_pretrain import distributed
from prompt_pretrain.errors import InputError
from prompt_pretrain.prefix_tree import PrefixTree, PromptRows
from prompt_pretrain.prompt_tokens import PromptTokens, tokenize_prompts, tokenize_texts
from prompt_pretrain.shared_prefix import SharedPrefixTransformer
from prompt_pretrain.text_tower import find_text_tower, obstacle_to_prefix_sharing

if TYPE_CHECKING:
    from prompt_pretrain.clip import Clip
    from prompt_pretrain.prompt import SoftPrompt

logger = logging.getLogger(__name__)

METHODS = ("auto", "shared_prefix", "plain")
# Tree nodes per pass: large enough for full matrix-multiplication speed, small enough that temporaries are reused.
_NODES_PER_PASS = {"cpu": 4096, "cuda": 65536}
# Ancestors gathered at a time in attention: on the CPU their keys and values must stay in the cache.
_LEVEL_ENTRIES = {"cpu": 512}
_PLAIN_ROWS_PER_PASS = 128


class TextEncoder:
    """The frozen text tower of a CLIP as a function of prompts and context vectors.

    Args:
        clip: the CLIP.
        method: ``shared_prefix`` (exact, every distinct beginning computed once), ``plain`` (every row at full
            length, through the model's own modules) or ``auto``: the first where it is exact, else the second.
    Raises:
        InputError: an unknown method, or ``shared_prefix`` for a tower on which it is not exact.
    """

    def __init__(self, clip: "Clip", method: str = "auto") -> None:
        if method not in METHODS:
            raise InputError(f"text encoder method is {method!r}; expected one of {', '.join(METHODS)}")
        self.clip = clip
        self.tower = find_text_tower(clip.model)
        obstacle = obstacle_to_prefix_sharing(self.tower)
        if method == "shared_prefix" and obstacle:
            raise InputError(f"{clip.clip_id} cannot share prefixes: {obstacle}; use method 'plain' or 'auto'")
        if method == "auto" and obstacle:
            logger.info("%s: %s, so class names are encoded at full length", clip.clip_id, obstacle)
        self.method = "plain" if method == "plain" or obstacle else "shared_prefix"
        self._rows: WeakKeyDictionary[PromptTokens, dict[bool, PromptRows]] = WeakKeyDictionary()
        self._trees: WeakKeyDictionary[PromptRows, dict[tuple, list[PrefixTree]]] = WeakKeyDictionary()

    def __call__(
        self,
        prompts: PromptTokens,
        ctx: Tensor | None = None,
        *,
        deep_ctx: Sequence[Tensor] = (),
        memory_budget: int | None = None,
        shard: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Text features (N, D), not normalised, float32; differentiable with respect to ``ctx``.

        Under autocast the linear layers run in its type, everything else in float32.

        Args:
            prompts: N prompts.
            ctx: (M, W) context vectors, or (N, M, W) for class-specific contexts (row i belongs to prompt i).
            deep_ctx: (M, W) vectors that replace the states of the context before layer 1, 2, … (deep prompts). Only
                with the name at the end and one context for all classes.
            memory_budget: bytes that activations saved for backward may take. What does not fit is computed again
                during backward, chunk by chunk; the gradients are the same.
            shard: encode a part of the rows on each process and gather the features, differentiably. Every process
                must pass the same prompts and contexts.
            progress: called with the number of prompts finished by each pass.
        Raises:
            InputError: ``ctx`` missing or of another shape than the prompts ask for; soft prompts for a tower that
                takes none; a memory budget too small for one pass.
        """
        self._check_ctx(prompts, ctx)
        if deep_ctx:
            self._check_deep(prompts, ctx, deep_ctx)
        if len(prompts) == 0:
            raise InputError("no class names to encode; give at least one")
        if self.method == "plain":
            return self._encode_plain(prompts, ctx, deep_ctx, memory_budget, shard, progress)
        return self._encode_tree(prompts, ctx, deep_ctx, memory_budget, shard, progress)

    def count_nodes(self, prompts: PromptTokens, class_specific: bool = False) -> tuple[int, int]:
        """Distinct tokens below the shared prefix, and distinct prompts, that the shared-prefix path computes."""
        rows = self._distinct_rows(prompts, class_specific)
        return int(rows.new_nodes().sum()), len(rows.codes)

    def _check_ctx(self, prompts: PromptTokens, ctx: Tensor | None) -> None:
        if prompts.n_ctx == 0 and ctx is None:
            return
        if self.tower is None:
            raise InputError(f"{self.clip.clip_id} takes no soft prompt: its text tower is not open_clip's own")
        shapes = [(prompts.n_ctx, self.tower.width), (len(prompts), prompts.n_ctx, self.tower.width)]
        if ctx is None or tuple(ctx.shape) not in shapes:
            found = None if ctx is None else tuple(ctx.shape)
            raise InputError(
                f"the context vectors have shape {found}; {self.clip.clip_id} and these prompts need {shapes[0]} or, "
                f"class by class, {shapes[1]}; use the prompt's own CLIP and n_ctx"
            )

    def _check_deep(self, prompts: PromptTokens, ctx: Tensor | None, deep_ctx: Sequence[Tensor]) -> None:
        assert self.tower is not None
        layers = len(self.tower.blocks)
        if len(deep_ctx) >= layers:
            raise InputError(
                f"{len(deep_ctx) + 1} layers of prompts for {self.clip.clip_id}, whose text tower has {layers}; "
                f"set the prompt depth to at most {layers}"
            )
        shape = (prompts.n_ctx, self.tower.width)
        leading = bool((prompts.ctx_index[:, 1 : 1 + prompts.n_ctx] >= 0).all())
        if ctx is None or ctx.ndim != 2 or not leading or any(tuple(vectors.shape) != shape for vectors in deep_ctx):
            raise InputError(
                f"deep prompts need one context of shape {shape} per layer, shared by all classes, before the class "
                f"name; found {[tuple(vectors.shape) for vectors in deep_ctx]}"
            )

    # -- shared prefixes -----------------------------------------------------------------------------------------

    def _encode_tree(
        self,
        prompts: PromptTokens,
        ctx: Tensor | None,
        deep_ctx: Sequence[Tensor],
        memory_budget: int | None,
        shard: bool,
        progress: Callable[[int], object] | None,
    ) -> Tensor:
        assert self.tower is not None
        device = self.tower.positional_embedding.device
        transformer = SharedPrefixTransformer(self.tower, self._linear_dtype(device))
        class_specific = ctx is not None and ctx.ndim == 3
        rows = self._distinct_rows(prompts, class_specific)
        bounds = distributed.shard_bounds(len(rows.codes)) if shard else (0, len(rows.codes))

        with torch.autocast(device.type, enabled=False):
            tokens, ctx_index = (x.to(device) for x in rows.trunk_codes())
            trunk_ctx = None if ctx is None or class_specific else ctx
            trunk = transformer.run_trunk(tokens, ctx_index, trunk_ctx, deep_ctx)
            needs_grad = torch.is_grad_enabled() and ctx is not None and ctx.requires_grad
            node_limit = _NODES_PER_PASS.get(device.type, 65536)
            kept = None
            if needs_grad and memory_budget is not None:
                node_limit, kept = _fit_budget(memory_budget, transformer.bytes_per_node(), node_limit)
            features, nodes = [], 0
            for tree in self._chunk_trees(rows, bounds, node_limit, device):
                nodes += len(tree)
                if kept is not None and nodes > kept:
                    part = checkpoint(
                        transformer.run_tree, tree, trunk, ctx, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    part = transformer.run_tree(tree, trunk, ctx)
                features.append(part)
                if progress is not None:
                    progress(len(part) * len(prompts) // len(rows.codes))
        found = torch.cat(features) if features else self._no_features(trunk)
        if shard:
            found = distributed.gather_rows(found, len(rows.codes))
        return found[torch.from_numpy(rows.row_of_prompt).to(device)]

    def _linear_dtype(self, device: torch.device) -> torch.dtype:
        assert self.tower is not None
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.tower.blocks[0].mlp.c_fc.weight.dtype

    def _distinct_rows(self, prompts: PromptTokens, class_specific: bool) -> PromptRows:
        # Kept as long as the caller keeps the prompts: full-vocabulary training merges its names once.
        by_kind = self._rows.setdefault(prompts, {})
        if class_specific not in by_kind:
            by_kind[class_specific] = PromptRows.from_prompts(prompts, class_specific)
        return by_kind[class_specific]

    def _chunk_trees(
        self, rows: PromptRows, bounds: tuple[int, int], node_limit: int, device: torch.device
    ) -> list[PrefixTree]:
        known = self._trees.setdefault(rows, {})
        key = (bounds, node_limit, device)
        if key not in known:
            cuts = _cut_rows(rows.new_nodes()[bounds[0] : bounds[1]], node_limit)
            entries = _LEVEL_ENTRIES.get(device.type, 1 << 20)
            known[key] = [rows.tree(bounds[0] + start, bounds[0] + stop, entries).to(device) for start, stop in cuts]
        return known[key]

    # -- every row at full length --------------------------------------------------------------------------------

    def _encode_plain(
        self,
        prompts: PromptTokens,
        ctx: Tensor | None,
        deep_ctx: Sequence[Tensor],
        memory_budget: int | None,
        shard: bool,
        progress: Callable[[int], object] | None,
    ) -> Tensor:
        start, stop = distributed.shard_bounds(len(prompts)) if shard else (0, len(prompts))
        needs_grad = torch.is_grad_enabled() and ctx is not None and ctx.requires_grad
        rows_kept = stop - start
        if needs_grad and memory_budget is not None and self.tower is not None:
            _, rows_kept = _fit_budget(memory_budget, self._plain_bytes_per_row(), _PLAIN_ROWS_PER_PASS)
        features = []
        for first in range(start, stop, _PLAIN_ROWS_PER_PASS):
            ids = torch.arange(first, min(first + _PLAIN_ROWS_PER_PASS, stop))
            part_ctx = ctx[ids.to(ctx.device)] if ctx is not None and ctx.ndim == 3 else ctx
            part = prompts.select(ids)
            if needs_grad and first - start + len(ids) > rows_kept:
                found = checkpoint(
                    self._plain_rows, part, part_ctx, deep_ctx, use_reentrant=False, preserve_rng_state=False
                )
            else:
                found = self._plain_rows(part, part_ctx, deep_ctx)
            features.append(found.float())
            if progress is not None:
                progress(len(ids))
        found = torch.cat(features) if features else self._no_features(ctx)
        return distributed.gather_rows(found, len(prompts)) if shard else found

    def _plain_rows(self, prompts: PromptTokens, ctx: Tensor | None, deep_ctx: Sequence[Tensor] = ()) -> Tensor:
        device = self.clip.device
        prompts = prompts.to(device)
        if self.tower is None or (ctx is None and self.method == "plain" and prompts.n_ctx == 0):
            return self.clip.model.encode_text(self._full_length(prompts.tokens))
        tower = self.tower
        tokens, ctx_index = self._full_length(prompts.tokens), self._full_length(prompts.ctx_index, -1)
        x = tower.token_embedding(tokens)
        is_slot = ctx_index >= 0
        assert ctx is not None
        vectors = ctx if ctx.ndim == 3 else ctx.expand(len(tokens), *ctx.shape)
        slots = vectors.gather(1, ctx_index.clamp(min=0).unsqueeze(-1).expand(-1, -1, vectors.shape[2]))
        x = torch.where(is_slot.unsqueeze(-1), slots.to(x.dtype), x) + tower.positional_embedding.to(x.dtype)
        if deep_ctx:
            for index, block in enumerate(tower.blocks):
                if 0 < index <= len(deep_ctx):
                    vectors = deep_ctx[index - 1].expand(len(tokens), -1, -1)
                    slots = vectors.gather(1, ctx_index.clamp(min=0).unsqueeze(-1).expand(-1, -1, vectors.shape[2]))
                    x = torch.where(is_slot.unsqueeze(-1), slots.to(x.dtype), x)
                x = block(x, attn_mask=tower.attn_mask)
        else:
            x = tower.module.transformer(x, attn_mask=tower.attn_mask)
        pooled = x[torch.arange(len(x), device=device), prompts.lengths - 1]
        return tower.project(pooled)

    def _no_features(self, source: Tensor | None) -> Tensor:
        """(0, D) features of a process without rows, tied to ``source`` so that it too takes part in backward."""
        nothing = torch.zeros((), device=self.clip.device) if source is None else source.float().sum() * 0
        return nothing.expand(0, self.clip.embed_dim)

    def _full_length(self, rows: Tensor, padding: int = 0) -> Tensor:
        return F.pad(rows, (0, self.clip.context_length - rows.shape[1]), value=padding)

    def _plain_bytes_per_row(self) -> int:
        assert self.tower is not None
        # Per token and layer torch saves about 14 W values (norms, attention, hidden layer, its activation) beside W
        # for each residual; measured on ViT-B/16 within 10 %.
        values = 18 * self.tower.width * len(self.tower.blocks) * self.clip.context_length
        return values * torch.empty(0, dtype=self._linear_dtype(self.clip.device)).element_size()


def encode_prompt(clip: "Clip", class_names: Sequence[str], prompt: "SoftPrompt", **options: object) -> Tensor:
    """Raw text features (N, D) of class names behind a learned prompt, without gradients.

    ``options`` go to :class:`TextEncoder`'s call.

    Raises:
        InputError: a class-specific prompt for another number of classes, another width, a name too long.
    """
    if prompt.class_specific and len(prompt.ctx) != len(class_names):
        raise InputError(
            f"the prompt holds contexts of {len(prompt.ctx)} classes but {len(class_names)} names were given; "
            "a class-specific prompt serves only the label set it was trained on"
        )
    tokens = tokenize_prompts(
        class_names, clip.tokenizer, prompt.n_ctx, prompt.position, context_length=clip.context_length
    )
    with torch.no_grad():
        return TextEncoder(clip)(tokens, prompt.ctx.to(clip.device), **options)  # type: ignore[arg-type]


def encode_templates(
    clip: "Clip",
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    normalize: bool = True,
    clean: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Text features (N, D) of class names in one or several templates such as ``a photo of a {}.``.

    With several templates: encode and normalise each, average, normalise. With one and ``normalize=False`` the raw
    text features.

    Args:
        clean: replace ``_`` by blanks in the names first.
        progress: called with the number of texts finished by each pass, of len(class_names) * len(templates).
    Raises:
        InputError: no template, or one without a ``{}``; a text too long.
    """
    if not templates:
        raise InputError("no template given; expected texts such as 'a photo of a {}.'")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"template {template!r} must hold one {{}} for the class name")
    names = [name.replace("_", " ") for name in class_names] if clean else list(class_names)
    encoder = TextEncoder(clip)
    total: Tensor | None = None
    for template in templates:
        texts = [template.replace("{}", name) for name in names]
        with torch.no_grad():
            prompts = tokenize_texts(texts, clip.tokenizer, context_length=clip.context_length)
            features = encoder(prompts, progress=progress)
        if len(templates) == 1 and not normalize:
            return features
        features = F.normalize(features, dim=1)
        total = features if total is None else total + features
    assert total is not None
    return F.normalize(total / len(templates), dim=1)


def _cut_rows(new_nodes: np.ndarray, node_limit: int) -> list[tuple[int, int]]:
    """Consecutive row ranges of about ``node_limit`` nodes each, at least one row."""
    if len(new_nodes) == 0:
        return []
    total = new_nodes.cumsum()
    parts = max(1, round(total[-1] / node_limit + 0.49))
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts)
    edges = np.unique(np.concatenate([[0], cuts, [len(new_nodes)]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _fit_budget(budget: int, bytes_per_unit: int, units_per_pass: int) -> tuple[int, int]:
    """Units of one pass, and units whose activations may stay, so that both together take at most ``budget`` bytes.

    One pass that is computed again needs room for what it saves and about as much again for temporaries.
    """
    affordable = budget // bytes_per_unit
    units_per_pass = min(units_per_pass, affordable // 4)
    if units_per_pass < 1:
        raise InputError(
            f"a memory budget of {budget / 2**20:.1f} MiB is below the {4 * bytes_per_unit / 2**20:.1f} MiB that one "
            "pass of the text encoder needs; raise it"
        )
    return units_per_pass, affordable - 3 * units_per_pass
