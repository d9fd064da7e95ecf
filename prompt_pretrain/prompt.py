"""The soft prompt: context vectors that stand before (or around) a class name, and the files they live in.

Every published form loads (POMP and CoOp checkpoints, bare tensors, safetensors, ``.npy``); our own files load in the
published consumers too. A file without usable context vectors is an error: a prompt left random would go unnoticed.
"""

import hashlib
import io
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prompt_pretrain.array_files import read_npy
from prompt_pretrain.atomic_files import atomic_writer, write_npy, write_safetensors
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError, reason_of
from prompt_pretrain.prompt_tokens import POSITIONS
from prompt_pretrain.safe_pickle import check_unfolded, read_torch_archive

_log = logging.getLogger(__name__)
_INITIAL_STD = 0.02
_FORMAT_VERSION = 1


class SoftPrompt(nn.Module):
    """M learned context vectors, shared by all classes or one set per class.

    Attributes:
        ctx: (M, W) or, class-specific, (N, M, W); float32.
        position: where the class name stands: ``end`` (behind all vectors), ``middle``, ``front``.
        metadata: plain values that travel with the file: CLIP id, data, seed, settings.
    """

    ctx: nn.Parameter

    def __init__(self, ctx: Tensor, position: str = "end", metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if ctx.ndim not in (2, 3) or 0 in ctx.shape:
            raise InputError(f"context vectors must have shape (M, W) or (N, M, W), got {tuple(ctx.shape)}")
        if position not in POSITIONS:
            raise InputError(f"unknown class-name position {position!r}; choose one of {', '.join(POSITIONS)}")
        self.ctx = nn.Parameter(ctx.detach().clone().float())
        self.position = position
        self.metadata: dict[str, Any] = dict(metadata or {})

    @classmethod
    def random(
        cls, n_ctx: int, width: int, *, num_classes: int | None = None, position: str = "end", seed: int = 0
    ) -> "SoftPrompt":
        """A prompt drawn from Normal(0, 0.02); ``num_classes`` makes it class-specific. Depends on ``seed`` alone."""
        if n_ctx < 1:
            raise InputError(f"a prompt needs at least 1 context vector, got N_CTX {n_ctx}")
        shape = (n_ctx, width) if num_classes is None else (num_classes, n_ctx, width)
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(shape, generator=generator) * _INITIAL_STD, position)

    @classmethod
    def from_words(
        cls, words: str, clip: Clip, position: str = "end", *, num_classes: int | None = None
    ) -> "SoftPrompt":
        """A prompt that starts as the token embeddings of ``words`` (``_`` counts as a blank).

        M is the number of blank-separated words. The vectors are the embeddings at token positions 1..M, so a word of
        several tokens pushes later words out, as in the published code (CTX_INIT).
        """
        words = words.replace("_", " ").strip()
        n_ctx = len(words.split())
        if n_ctx == 0:
            raise InputError("CTX_INIT holds no words; give some ('a photo of a'), or leave it empty and set N_CTX")
        tokens = clip.tokenizer([words])[0, 1 : 1 + n_ctx].to(clip.device)
        text = getattr(clip.model, "text", clip.model)
        ctx = text.token_embedding.weight[tokens].float().cpu()
        if num_classes is not None:
            ctx = ctx.expand(num_classes, -1, -1)
        return cls(ctx, position, {"initial_words": words})

    @property
    def n_ctx(self) -> int:
        """M, the number of context vectors."""
        return self.ctx.shape[-2]

    @property
    def width(self) -> int:
        """W, the channels of each vector; the text width of the CLIP it belongs to."""
        return self.ctx.shape[-1]

    @property
    def class_specific(self) -> bool:
        return self.ctx.ndim == 3

    @property
    def num_classes(self) -> int | None:
        """N of a class-specific prompt, else None (it serves any vocabulary)."""
        return self.ctx.shape[0] if self.class_specific else None

    def extra_repr(self) -> str:
        return f"ctx={tuple(self.ctx.shape)}, position={self.position!r}"


def save_prompt(
    path: str | os.PathLike, prompt: SoftPrompt, *, epoch: int | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write ``prompt`` atomically, in the form that the suffix asks for.

    ``.npy``: the bare array. ``.safetensors``: ``ctx`` and the metadata. Anything else: a torch file with
    ``state_dict`` (holding ``ctx``), ``epoch`` and ``metadata``, which the published classification, Detic and ZSSeg
    code read, and which loads with ``weights_only=True``. ``extra``: more top-level entries for that form, such as
    ``val_result``.
    """
    ctx = prompt.ctx.detach().cpu().clone()
    metadata = {
        **prompt.metadata,
        "position": prompt.position,
        "n_ctx": prompt.n_ctx,
        "format_version": _FORMAT_VERSION,
    }
    suffix = Path(path).suffix
    if suffix == ".npy":
        write_npy(path, ctx.numpy())
    elif suffix == ".safetensors":
        write_safetensors(path, {"ctx": ctx}, {key: str(value) for key, value in metadata.items()})
    else:
        content = {"state_dict": {"ctx": ctx}, "epoch": epoch, "metadata": metadata, **(extra or {})}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)  # refuses extras that a reader would refuse
        with atomic_writer(path) as file:
            file.write(buffer.getvalue())


def load_prompt(
    path: str | os.PathLike, *, width: int | None = None, n_ctx: int | None = None, allow_suspicious: bool = False
) -> SoftPrompt:
    """Read a prompt from any published or own file form.

    Forms: a dictionary with ``state_dict`` (POMP, CoOp; token buffers are dropped, prefixes such as ``module.`` or
    ``prompt_learner.`` removed), ``{"ctx": …}``, a bare tensor, ``.safetensors``, ``.npy``; half or single precision.
    Whole training checkpoints also hold scheduler objects: these are skipped and never built.

    Args:
        width: W of the CLIP it shall serve. n_ctx: M that the caller counts on. None accepts any.
        allow_suspicious: read ``ctx`` also from a file that names functions such as ``os.system`` (they are never run).
    Raises:
        InputError: no such file, damaged, suspicious, without ``ctx``, of another shape, or with values not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no prompt file {path}; give the file written by pretrain_prompt or a published one")
    content, position, metadata = _read(path, allow_suspicious)
    ctx = _find_ctx(content, path, width, n_ctx)
    _check(ctx, path, width, n_ctx)
    if position not in POSITIONS:
        raise InputError(f"{path} says class-name position {position[:40]!r}; expected one of {', '.join(POSITIONS)}")
    return SoftPrompt(ctx, position, metadata)


def prompt_hash(prompt: SoftPrompt) -> str:
    """16 hexadecimal digits that are equal exactly for prompts with equal vectors and position."""
    ctx = prompt.ctx.detach().cpu().float().contiguous()
    header = f"{tuple(ctx.shape)} {prompt.position}\n".encode()
    return hashlib.sha256(header + ctx.numpy().tobytes()).hexdigest()[:16]


def _read(path: Path, allow_suspicious: bool) -> tuple[Any, str, dict[str, Any]]:
    """Content, class-name position and metadata of a prompt file."""
    if path.suffix == ".npy":
        array = read_npy(path)
        if array.dtype.kind != "f":
            raise InputError(f"{path} holds an array of {array.dtype}; expected floating-point numbers")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="))), "end", {}
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_torch(path, allow_suspicious)
    metadata = content.get("metadata") if isinstance(content, Mapping) else None
    metadata = dict(metadata) if isinstance(metadata, Mapping) else {}
    return content, str(metadata.pop("position", "end")), metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, metadata.pop("position", "end"), metadata
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no safetensors file or is cut short ({reason_of(error)}); get it again") from error


def _read_torch(path: Path, allow_suspicious: bool) -> Any:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged and for refused files
        _log.debug("%s needs the lenient reader: %s", path, error)
        # Either damaged or a whole training checkpoint with objects in it.
        return read_torch_archive(path, allow_suspicious=allow_suspicious)
    check_unfolded(content, path)
    return content


def _find_ctx(content: Any, path: Path, width: int | None, n_ctx: int | None) -> Tensor:
    if isinstance(content, Tensor):
        return content
    entries = content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        entries = content["state_dict"]
    if not isinstance(entries, Mapping):
        raise InputError(f"{_wanted(path, width, n_ctx)}, found {type(content).__name__}; give a file that holds one")
    named = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    found = {key: value for key, value in named.items() if key.rsplit(".", 1)[-1] == "ctx"}
    if len(found) != 1:
        listed = _listed(found or named)
        hint = "an unloaded prompt would stay random" if not found else "give a file with a single prompt"
        raise InputError(f"{_wanted(path, width, n_ctx)}, found {listed}; {hint}")
    return next(iter(found.values()))


def _check(ctx: Tensor, path: Path, width: int | None, n_ctx: int | None) -> None:
    if ctx.ndim not in (2, 3) or 0 in ctx.shape or not ctx.is_floating_point():
        raise InputError(
            f"{_wanted(path, width, n_ctx)}, found {tuple(ctx.shape)} of {ctx.dtype}; expected floating-point (M, W), "
            "or (N, M, W) for class-specific vectors"
        )
    if width is not None and ctx.shape[-1] != width:
        raise InputError(
            f"{_wanted(path, width, n_ctx)}, found {tuple(ctx.shape)}; this prompt belongs to a CLIP of text width "
            f"{ctx.shape[-1]}, choose that CLIP or another prompt"
        )
    if n_ctx is not None and ctx.shape[-2] != n_ctx:
        raise InputError(
            f"{_wanted(path, width, n_ctx)}, found {tuple(ctx.shape)}; set the number of context vectors (N_CTX, "
            f"PROMPT_SHAPE) to {ctx.shape[-2]}, an unloaded prompt would stay random"
        )
    bad = int((~ctx.isfinite()).sum())
    if bad:
        raise InputError(
            f"{path} holds {bad} context values that are not finite; its training failed, use another epoch"
        )


def _wanted(path: Path, width: int | None, n_ctx: int | None) -> str:
    return f"no 'ctx' of shape ({n_ctx or 'M'}, {width or 'W'}) in {path}"


def _listed(entries: Mapping[str, Tensor]) -> str:
    names: Iterable[str] = (f"{key} {tuple(value.shape)}" for key, value in list(entries.items())[:4])
    return ", ".join(names) + (" and more" if len(entries) > 4 else "") or "no tensors"
