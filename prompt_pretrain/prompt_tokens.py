"""Class names and texts as token rows, with the places where learned context vectors stand marked."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prompt_pretrain.errors import InputError

POSITIONS = ("end", "middle", "front")
CONTEXT_LENGTH = 77
_PLACEHOLDER = "X"  # one token; the context vectors take its places


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """N prompts as rows of equal length L (padding behind each row's last token).

    Attributes:
        tokens: (N, L) int64 token ids; 0 behind the last token and where a context vector stands.
        ctx_index: (N, L) int64; -1 for an ordinary token, else the index of the context vector that stands there.
        lengths: (N,) int64, number of tokens of each row including the first (SOT) and the last (EOT).
        n_ctx: number of context vectors a row holds, 0 for plain texts.
    """

    tokens: Tensor
    ctx_index: Tensor
    lengths: Tensor
    n_ctx: int

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, ids: Tensor) -> "PromptTokens":
        """The rows ``ids`` ((K,) int64, repeats allowed), in that order."""
        ids = ids.to(self.tokens.device)
        return PromptTokens(self.tokens[ids], self.ctx_index[ids], self.lengths[ids], self.n_ctx)

    def to(self, device: torch.device | str) -> "PromptTokens":
        return PromptTokens(self.tokens.to(device), self.ctx_index.to(device), self.lengths.to(device), self.n_ctx)


def clean_class_name(name: str) -> str:
    """The class name as prompts spell it: every ``_`` becomes a blank, nothing else changes (the release's rule)."""
    return name.replace("_", " ")


def tokenize_prompts(
    class_names: Sequence[str],
    tokenizer: Any,
    n_ctx: int,
    position: str = "end",
    *,
    context_length: int = CONTEXT_LENGTH,
    ctx_words: str = "",
    joint_dot: bool = True,
) -> PromptTokens:
    """Prompts ``[SOT] v1 … vM name . [EOT]``, one per class.

    Args:
        class_names: C names; cleaned by :func:`clean_class_name`.
        tokenizer: open_clip's ``SimpleTokenizer``.
        n_ctx: M, number of context vectors.
        position: where the name stands relative to the context: ``end`` (behind it), ``middle`` (behind the first
            M // 2 vectors) or ``front`` (before it).
        ctx_words: the words that initialise the context, if any. They are the text that is tokenised in its place, so
            that a word of several tokens shifts the name exactly as in the release.
        joint_dot: tokenise the dot together with the name, as classification and Detic do: a name that ends in
            punctuation then merges with it (``)`` + ``.`` is one token). False keeps them apart, as ZSSeg does.
    Raises:
        InputError: an unknown position, an empty name, or a name too long for the context.
    """
    if position not in POSITIONS:
        raise InputError(f"class token position is {position!r}; expected one of {', '.join(POSITIONS)}")
    start = ctx_words.replace("_", " ").strip() or " ".join([_PLACEHOLDER] * n_ctx)
    rows = []
    for index, raw_name in enumerate(class_names):
        name = clean_class_name(raw_name)
        name_tokens = tokenizer.encode(name) if position != "end" or not joint_dot else []
        if not name.strip():
            raise InputError(f"class {index} has an empty name ({raw_name!r}); give every class a name")
        if joint_dot:
            encoded = tokenizer.encode(f"{start} {name}.".strip())
        else:
            encoded = tokenizer.encode(start) + name_tokens + tokenizer.encode(".")
        row: list[int | None] = [tokenizer.sot_token_id, *[None] * n_ctx]
        suffix = [*encoded[n_ctx:], tokenizer.eot_token_id]
        if position == "middle":
            row = [row[0], *row[1 : 1 + n_ctx // 2], *suffix[: len(name_tokens)], *row[1 + n_ctx // 2 :]]
            suffix = suffix[len(name_tokens) :]
        elif position == "front":
            row = [row[0], *suffix[: len(name_tokens)], *row[1:]]
            suffix = suffix[len(name_tokens) :]
        row = _until_eot([*row, *suffix], tokenizer)
        if len(row) > context_length:
            raise InputError(
                f"class name {raw_name!r} needs {len(row)} tokens with {n_ctx} context vectors but the text encoder "
                f"takes {context_length}; shorten the name"
            )
        rows.append(row)
    return _pad(rows, n_ctx)


def tokenize_pieces(
    class_names: Sequence[str],
    tokenizer: Any,
    num_before: int,
    num_after: int = 0,
    *,
    context_length: int = CONTEXT_LENGTH,
) -> PromptTokens:
    """Prompts ``[SOT] v1 … name … vM . [EOT]`` whose name, taken verbatim, and dot are tokenised apart, as in ZSSeg.

    Args:
        num_before: context vectors before the name.
        num_after: context vectors between name and dot.
    Raises:
        InputError: an empty name, or one too long for the context.
    """
    rows = []
    for index, name in enumerate(class_names):
        if not name.strip():
            raise InputError(f"class {index} has an empty name ({name!r}); give every class a name")
        row: list[int | None] = [tokenizer.sot_token_id, *[None] * num_before, *tokenizer.encode(name)]
        row = _until_eot([*row, *[None] * num_after, *tokenizer.encode("."), tokenizer.eot_token_id], tokenizer)
        if len(row) > context_length:
            raise InputError(
                f"class name {name!r} needs {len(row)} tokens with {num_before + num_after} context vectors but the "
                f"text encoder takes {context_length}; shorten the name"
            )
        rows.append(row)
    return _pad(rows, num_before + num_after)


def tokenize_around_names(
    names: Sequence[str],
    endings: Sequence[str],
    tokenizer: Any,
    n_ctx: int,
    *,
    context_length: int = CONTEXT_LENGTH,
) -> PromptTokens:
    """Prompts ``[SOT] v1 … vn name w1 … wn ending . [EOT]`` of regional prompt learning; vectors v, then w.

    The text is tokenised as a whole, so a dot merges with an ending in punctuation; where the name ends is counted by
    the tokens of the name alone.

    Args:
        names: C names; cleaned by :func:`clean_class_name`, as are the endings.
        endings: what stands behind the second context, usually a description; "" is allowed.
        n_ctx: n, vectors in each of the two contexts.
    Raises:
        InputError: an empty name, or a text too long for the context.
    """
    placeholders = " ".join([_PLACEHOLDER] * n_ctx)
    rows = []
    for index, (raw_name, raw_ending) in enumerate(zip(names, endings, strict=True)):
        name, ending = clean_class_name(raw_name), clean_class_name(raw_ending)
        if not name.strip():
            raise InputError(f"class {index} has an empty name ({raw_name!r}); give every class a name")
        encoded = tokenizer.encode(f"{placeholders} {name} {placeholders} {ending}".strip() + ".")
        stop = n_ctx + len(tokenizer.encode(name))
        row: list[int | None] = [tokenizer.sot_token_id, *[None] * n_ctx, *encoded[n_ctx:stop], *[None] * n_ctx]
        row = _until_eot([*row, *encoded[stop + n_ctx :], tokenizer.eot_token_id], tokenizer)
        if len(row) > context_length:
            raise InputError(
                f"class {raw_name!r} needs {len(row)} tokens with its description and {2 * n_ctx} context vectors but "
                f"the text encoder takes {context_length}; shorten the description"
            )
        rows.append(row)
    return _pad(rows, 2 * n_ctx)


def tokenize_texts(texts: Sequence[str], tokenizer: Any, *, context_length: int = CONTEXT_LENGTH) -> PromptTokens:
    """Plain texts ``[SOT] text [EOT]`` as prompts without context vectors.

    A tokenizer other than open_clip's ``SimpleTokenizer`` is called as it is; its rows keep their full length, since
    nothing is known about its padding.

    Raises:
        InputError: a text too long for the context.
    """
    if not is_simple_tokenizer(tokenizer):
        tokens = tokenizer(list(texts))
        lengths = torch.full((len(tokens),), tokens.shape[1], dtype=torch.long)
        return PromptTokens(tokens.long(), torch.full_like(tokens, -1, dtype=torch.long), lengths, 0)
    rows: list[list[int | None]] = []
    for text in texts:
        row = _until_eot([tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id], tokenizer)
        if len(row) > context_length:
            raise InputError(
                f"text {text!r} needs {len(row)} tokens but the text encoder takes {context_length}; shorten it"
            )
        rows.append(row)
    return _pad(rows, 0)


def is_simple_tokenizer(tokenizer: Any) -> bool:
    """Whether this is CLIP's byte-pair tokenizer, whose rows end at EOT and are padded behind it."""
    from open_clip.tokenizer import SimpleTokenizer

    return isinstance(tokenizer, SimpleTokenizer)


def _until_eot(row: list[int | None], tokenizer: Any) -> list[int | None]:
    # A text may spell the EOT token out; CLIP pools the first one.
    return row[: row.index(tokenizer.eot_token_id) + 1]


def _pad(rows: Sequence[Sequence[int | None]], n_ctx: int) -> PromptTokens:
    """Rows in which None marks the next context vector, as one rectangle."""
    width = max((len(row) for row in rows), default=1)
    tokens, ctx_index = [], []
    for row in rows:
        slots = itertools.count()
        padding = width - len(row)
        tokens.append([0 if token is None else token for token in row] + [0] * padding)
        ctx_index.append([next(slots) if token is None else -1 for token in row] + [-1] * padding)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    shape = (len(rows), width)
    return PromptTokens(
        torch.tensor(tokens, dtype=torch.long).reshape(shape),
        torch.tensor(ctx_index, dtype=torch.long).reshape(shape),
        lengths,
        n_ctx,
    )
