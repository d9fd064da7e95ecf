"""CLIP weight files: reading every published form safely, telling the architecture, and writing tiny ones."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from prompt_pretrain.atomic_files import write_safetensors
from prompt_pretrain.errors import InputError, reason_of
from prompt_pretrain.safe_pickle import is_torchscript_archive, read_torchscript_state

_log = logging.getLogger(__name__)
_TOKENS = "token_embedding.weight"
_VOCABULARY_SIZE = 49408
# Entries of OpenAI's archives that are no parameters, and a buffer that open_clip does not store.
_NO_PARAMETERS = frozenset({"input_resolution", "context_length", "vocab_size", "attn_mask"})

_MODEL_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LARGEST = {"vocab_size": 1 << 22, "layers": 1000, "head_width": 1 << 14}  # of numbers in a config
_LARGEST_SIZE = 1 << 17
_MAX_PARAMETERS = 5_000_000_000  # twice those of the largest CLIP of open_clip


class ClipWeights(NamedTuple):
    """What a weight file says: its tensors, the open_clip config if it holds one, and whether OpenAI wrote it."""

    state: dict[str, Tensor]
    config: dict[str, Any] | None
    is_openai: bool


def read_clip_weights(path: str | PathLike) -> ClipWeights:
    """Read a CLIP weight file without executing anything in it.

    Forms: OpenAI's TorchScript archives, state dicts saved with ``torch.save`` (bare, or under ``state_dict``, with or
    without ``module.``), safetensors (with ``token_rows`` expanded, see :func:`save_clip`). A config is taken from the
    metadata of safetensors or from ``open_clip_config.json`` in the same folder, as the Hugging Face hub lays it out.

    Raises:
        InputError: the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no CLIP weight file {path}; give an existing file or an open_clip 'name/tag'")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
        config = parse_config(metadata["open_clip_config"], path) if "open_clip_config" in metadata else None
        state = _expand_token_rows(state, config, path)
        is_openai = False
    elif is_torchscript_archive(path):
        state, config, is_openai = read_torchscript_state(path), None, True
    else:
        state, config = _read_torch(path), None
        is_openai = "input_resolution" in state
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if name not in _NO_PARAMETERS}
    beside = path.parent / "open_clip_config.json"
    if config is None and not is_openai and beside.is_file():
        config = parse_config(beside.read_bytes(), beside)
    return ClipWeights(state, config, is_openai)


def parse_config(text: str | bytes, source: str | PathLike) -> dict[str, Any]:
    """An open_clip config from JSON, unwrapped from ``model_cfg`` where the hub's layout has that."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the open_clip config in {source} is no valid JSON: {error}") from error
    config = config.get("model_cfg", config) if isinstance(config, dict) else config
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise InputError(f"the open_clip config in {source} lacks some of embed_dim, vision_cfg, text_cfg")
    for key in ("vision_cfg", "text_cfg"):
        if not isinstance(config[key], dict):
            raise InputError(f"the open_clip config in {source}: {key} is no object of settings")
        name = config[key].get("timm_model_name" if key == "vision_cfg" else "hf_model_name")
        if name is not None and not (isinstance(name, str) and _MODEL_NAME.fullmatch(name)):
            # With ":" or a path in it, timm would fetch the model's code settings from where it says.
            raise InputError(f"the open_clip config in {source}: {key} names the model {name!r}; expected a plain name")
    _check_sizes(config, "", source)
    return config


def _check_sizes(value: Any, key: str, source: str | PathLike) -> None:
    """No number may be so large that building the model would fill the memory or take forever."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_sizes(inner, f"{key}.{name}" if key else str(name), source)
        return
    largest = next((limit for part, limit in _LARGEST.items() if f".{part}" in key), _LARGEST_SIZE)
    if isinstance(value, int | float) and not abs(value) <= largest:
        raise InputError(f"the open_clip config in {source}: {key} is {value}; at most {largest} is possible")


def check_parameter_count(make: Callable[[], nn.Module], source: str) -> None:
    """Build the model without memory for its numbers and count them, where its parts allow that.

    Raises:
        InputError: there are more than any CLIP has.
    """
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in make().parameters())
    except Exception:  # some towers compute with numbers while they are built; others cannot be built at all
        return
    if count > _MAX_PARAMETERS:
        raise InputError(
            f"{source} describes a CLIP with {count:,} parameters; at most {_MAX_PARAMETERS:,} are possible"
        )


def infer_config(state: Mapping[str, Tensor], source: str | PathLike, *, quick_gelu: bool) -> dict[str, Any]:
    """The open_clip config of an OpenAI-style CLIP (ViT or ResNet), read off its tensor shapes.

    Shapes do not tell the number of heads: the text tower has one per 64 channels, an image tower what open_clip's
    own config of that size says, else one per 64 channels too.
    """
    try:
        text = {
            "context_length": state["positional_embedding"].shape[0],
            "vocab_size": state[_TOKENS].shape[0],
            "width": state["ln_final.weight"].shape[0],
            "heads": max(1, state["ln_final.weight"].shape[0] // 64),
            "layers": _count(state, r"transformer\.resblocks\.(\d+)\."),
        }
        vision = _vit_config(state) if "visual.proj" in state else _resnet_config(state)
        return {
            "embed_dim": state["text_projection"].shape[1],
            "quick_gelu": quick_gelu,
            "vision_cfg": vision,
            "text_cfg": text,
        }
    except (KeyError, IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        found = f"{error.args[0]} is missing" if isinstance(error, KeyError) else f"its shapes say nothing ({error})"
        raise InputError(
            f"{source} is no CLIP of OpenAI's layout: {found}; name the open_clip architecture and "
            "give the file as its weights"
        ) from error


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str | PathLike) -> None:
    """Copy ``state`` into ``model``; an :class:`InputError` names the first entries that do not fit."""
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{source} does not fit this CLIP: {'; '.join(problems[:3])}{more}")
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(f"{source} holds values that are not finite in {broken[0]}; get the file again")
    model.load_state_dict(dict(state))


def save_clip(
    path: str | PathLike,
    model: nn.Module,
    config: Mapping[str, Any],
    *,
    token_rows: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a CLIP as safetensors with its open_clip config, atomically; :func:`load_clip` reads it back.

    Args:
        model: ``open_clip.CLIP`` built from ``config``.
        config: ``embed_dim``, ``vision_cfg``, ``text_cfg``, ``quick_gelu``.
        token_rows: ids of the tokens whose embeddings are kept. The rows of all others come back as seeded noise
            (normal, 0.02): a tiny CLIP never saw them in training, and 49,408 rows would be most of its file.
        dtype: store floating-point tensors so (they come back as float32); None keeps them as they are.
    """
    state = {name: value.detach() for name, value in model.state_dict().items()}
    if token_rows is not None:
        rows = torch.tensor(sorted(set(token_rows)), dtype=torch.int64)
        state["token_rows"] = rows
        state[_TOKENS] = state[_TOKENS][rows.to(state[_TOKENS].device)]
    if dtype is not None:
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    metadata = {"open_clip_config": json.dumps(dict(config)), "format": "pt"}
    write_safetensors(path, state, metadata)


def file_fingerprint(path: str | PathLike) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no safetensors file or is cut short ({reason_of(error)}); get it again") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged and for refused files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} does not load as plain weights ({reason[:160]}); it is damaged or holds more than tensors: "
            "get it again, or use the .safetensors form"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    state = {n: v for n, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise InputError(f"{path} holds no state dict; expected names with tensors, got {type(content).__name__}")
    return state


def _expand_token_rows(state: dict[str, Tensor], config: dict[str, Any] | None, path: Path) -> dict[str, Tensor]:
    rows = state.pop("token_rows", None)
    if rows is None:
        return state
    size = (config or {}).get("text_cfg", {}).get("vocab_size", _VOCABULARY_SIZE)
    kept = state.get(_TOKENS)
    if (
        not isinstance(size, int)
        or kept is None
        or kept.ndim != 2
        or rows.shape != kept.shape[:1]
        or rows.is_floating_point()
        or not _within(rows, size)
    ):
        raise InputError(f"{path} has token_rows that do not fit its {_TOKENS}; save it again with save_clip")
    # NumPy's frozen generator, so that the table is the same with every version of torch.
    noise = np.random.RandomState(0).standard_normal((size, kept.shape[1])).astype(np.float32)
    table = torch.from_numpy(noise) * 0.02
    table[rows.long()] = kept.float()
    return state | {_TOKENS: table}


def _within(rows: Tensor, size: int) -> bool:
    return bool(((rows >= 0) & (rows < size)).all())


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})


def _vit_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    hidden = state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    return {
        "image_size": grid * patch,
        "layers": layers,
        "width": width,
        "patch_size": patch,
        "head_width": _head_width(width, layers, patch),
        "mlp_ratio": hidden / width,
    }


def _resnet_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    grid = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "image_size": grid * 32,
        "layers": [_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)],
        "width": state["visual.layer1.0.conv1.weight"].shape[0],
        "patch_size": None,
    }


def _head_width(width: int, layers: int, patch: int) -> int:
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        if (vision.get("width"), vision.get("layers"), vision.get("patch_size")) == (width, layers, patch):
            return vision.get("head_width", 64)
    return min(64, width)
