"""A frozen CLIP from an open_clip name and tag, a weight file, or a tiny explicit config."""

import copy
import difflib
import hashlib
import logging
import os
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from prompt_pretrain.clip_files import (
    check_parameter_count,
    file_fingerprint,
    infer_config,
    load_state,
    parse_config,
    read_clip_weights,
    save_clip,
)
from prompt_pretrain.errors import InputError
from prompt_pretrain.safe_pickle import is_torchscript_archive
from prompt_pretrain.shapeworld import TINY_CLIP, TINY_CLIP_NAME

__all__ = ["Clip", "clip_from_config", "fetch_clip", "load_clip", "save_clip"]
_log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp": torch.float32}
# The names that OpenAI published, by open_clip's spelling.
_PUBLISHED = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}
_QUICK = "-quickgelu"
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".tar", ".ckpt")


class Clip:
    """A CLIP whose towers are frozen for good: no gradients to weights, evaluation mode whatever is called on them.

    Attributes:
        model: the open_clip model.
        clip_id: stable name that tells models apart: ``ViT-B-16-quickgelu/openai``, ``file:tiny#0123456789ab``.
        image_size: side of the square input in pixels; ``mean`` and ``std`` normalise RGB values in [0, 1].
        text_width: W, channels of the text transformer and of context vectors.
        embed_dim: D, channels of image and text features.
        context_length: tokens per text, 77 for OpenAI's models.
        logit_scale: factor on cosine similarities, exp already applied (100 for OpenAI's models).
        dtype: type of the towers' weights; float32 for precision "amp", where callers use autocast.
    """

    def __init__(
        self,
        model: Any,  # open_clip's classes share no interface that a type could name
        *,
        clip_id: str,
        make_tokenizer: Callable[[], Any] | None = None,
        precision: str = "fp32",
        mean: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN,
        std: tuple[float, ...] = open_clip.OPENAI_DATASET_STD,
    ) -> None:
        self.model: Any = _freeze(model)
        self.clip_id = clip_id
        self.precision = precision
        self.dtype = PRECISIONS[precision]
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.image_size = _square_side(model.visual.image_size, clip_id)
        self.text_width = _text_width(model)
        self.context_length = int(getattr(_text_tower(model), "context_length", 77))
        self.logit_scale = float(model.logit_scale.detach().float().exp().reshape(-1)[0])
        self._make_tokenizer = make_tokenizer or _simple_tokenizer(self.context_length)

    def __repr__(self) -> str:
        return f"Clip({self.clip_id}, {self.precision} on {self.device})"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def embed_dim(self) -> int:
        return _embed_dim(self.model)

    @cached_property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer of this model, made when first used (a foreign one may need ``transformers``)."""
        try:
            return self._make_tokenizer()
        except Exception as error:  # missing package, no network, missing file: all foreign and many
            raise InputError(
                f"the tokenizer of {self.clip_id} is not available ({_first_line(error)}); install transformers and "
                "sentencepiece, and have its files in the Hugging Face cache"
            ) from error

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Image features (B, D), not normalised, of normalised images (B, 3, H, W)."""
        return self.model.encode_image(images.to(self.device, self.dtype))

    @cached_property
    def text_fingerprint(self) -> str:
        """Hash of the text tower's weights and structure; equal exactly when text features are equal."""
        return _fingerprint(self.model, image=False)

    @cached_property
    def image_fingerprint(self) -> str:
        """Hash of the image tower's weights and structure."""
        return _fingerprint(self.model, image=True)

    def to(self, device: str | torch.device) -> "Clip":
        """Move the towers and return self."""
        self.model.to(device)
        return self


def load_clip(
    name: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> Clip:
    """Load a frozen CLIP.

    Args:
        name: one of
            * ``shapeworld-tiny``: the small CLIP that comes with this package, see ``shapeworld``;
            * a published name (``ViT-B/16``, ``ViT-B/32``, ``RN50``, ``ViT-L/14`` …): OpenAI's weights;
            * ``NAME/TAG`` of open_clip; the tag ``openai`` always gets the QuickGELU variant that it needs;
            * a weight file: OpenAI's archive, a state dict, safetensors. Its architecture is told by its metadata, by
              ``open_clip_config.json`` beside it, or by its shapes;
            * a ``.json`` open_clip config: random weights, the same ones every time.
        weights: file with the weights for an architecture given by an open_clip name or a ``.json`` config.
        device: where the towers go.
        precision: ``fp32``; ``bf16`` or ``fp16``: weights cast, LayerNorm in float32; ``amp``: float32 weights, meant
            for autocast.
    Raises:
        InputError: unknown name or tag, wrong activation for the tag, failed download, missing, damaged or unsafe file.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    name = os.fspath(TINY_CLIP) if name == TINY_CLIP_NAME else os.fspath(name)
    if name.endswith(".json"):
        clip = _from_config_file(Path(name), weights, precision)
    elif weights is not None:
        clip = _from_name_and_file(name, Path(weights), precision)
    elif name.endswith(_WEIGHT_SUFFIXES) or os.path.isfile(name):
        clip = _from_weight_file(Path(name), precision)
    else:
        clip = _from_tag(name, precision)
    return clip.to(device)


def fetch_clip(name: str | os.PathLike) -> Path:
    """The file of a CLIP that :func:`load_clip` would read, downloaded if need be, to fail early without it.

    Raises:
        InputError: unknown name or tag, failed download, missing file.
    """
    name = os.fspath(TINY_CLIP) if name == TINY_CLIP_NAME else os.fspath(name)
    if not (name.endswith((".json", *_WEIGHT_SUFFIXES)) or os.path.isfile(name)):
        return _file_of_tag(name, *_split_tag(name))
    if not os.path.isfile(name):
        raise InputError(f"no CLIP file {name}; give an existing file or an open_clip 'name/tag'")
    return Path(name)


def clip_from_config(
    config: Mapping[str, Any], *, seed: int = 0, precision: str = "fp32", clip_id: str | None = None, source: str = ""
) -> Clip:
    """A CLIP with seeded random weights from an open_clip config (``embed_dim``, ``vision_cfg``, ``text_cfg`` …)."""
    model = _build(config, precision, seed, source or clip_id or "the given settings")
    return Clip(model, clip_id=clip_id or f"config:{_config_hash(config)}#seed{seed}", precision=precision)


def _from_config_file(path: Path, weights: str | os.PathLike | None, precision: str) -> Clip:
    if not path.is_file():
        raise InputError(f"no CLIP config {path}; give an existing .json file or an open_clip 'name/tag'")
    config = parse_config(path.read_bytes(), path)
    if weights is None:
        return clip_from_config(
            config, precision=precision, clip_id=f"file:{path.stem}#{file_fingerprint(path)}", source=str(path)
        )
    return _from_config_and_file(config, Path(weights), precision)


def _from_weight_file(path: Path, precision: str) -> Clip:
    content = read_clip_weights(path)
    config = content.config
    if config is None:
        if not content.is_openai:
            _log.warning(
                "%s does not tell its activation; taking QuickGELU as in OpenAI's models. If it was trained without, "
                "name the open_clip architecture and give the file as its weights",
                path,
            )
        config = infer_config(content.state, path, quick_gelu=True)
    return _with_state(config, content.state, path, precision)


def _from_config_and_file(config: Mapping[str, Any], path: Path, precision: str) -> Clip:
    return _with_state(config, read_clip_weights(path).state, path, precision)


def _with_state(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, precision: str) -> Clip:
    model = _build(config, precision, 0, str(path))
    load_state(model, state, path)
    return Clip(model, clip_id=_file_id(path), precision=precision)


def _from_name_and_file(name: str, path: Path, precision: str) -> Clip:
    architecture, _, tag = name.rpartition("/") if _is_tagged(name) else (name, "", "")
    architecture = _PUBLISHED.get(architecture, architecture)
    _check_architecture(architecture, name)
    content = read_clip_weights(path)
    quick = bool(open_clip.get_model_config(architecture).get("quick_gelu"))
    if tag == "openai" and not quick:
        architecture, quick = architecture + _QUICK, True
    if content.is_openai and not quick:
        raise InputError(f"{path} holds OpenAI's weights, which need QuickGELU; name {architecture}{_QUICK}")
    model = _create(architecture, precision)
    load_state(model, content.state, path)
    return _named(model, architecture, {}, _file_id(path), precision)


def _from_tag(name: str, precision: str) -> Clip:
    architecture, tag = _split_tag(name)
    pretrained = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    quick = bool(open_clip.get_model_config(architecture).get("quick_gelu"))
    if bool(pretrained.get("quick_gelu")) != quick:
        other = architecture.removesuffix(_QUICK) if quick else architecture + _QUICK
        raise InputError(f"{name} would run with the wrong activation; its weights belong to {other}/{tag}")
    path = _file_of_tag(name, architecture, tag)
    model = _create(architecture, precision)
    if is_torchscript_archive(path):
        load_state(model, read_clip_weights(path).state, path)
    else:
        with _quiet():
            try:
                open_clip.load_checkpoint(model, str(path))
            except Exception as error:
                raise InputError(
                    f"the weights of {name} in {path} do not load ({_first_line(error)}); delete that file"
                ) from error
    return _named(model, architecture, pretrained, f"{architecture}/{tag}", precision)


def _file_of_tag(name: str, architecture: str, tag: str) -> Path:
    pretrained = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    return _cached_openai_file(pretrained) or _download(name, pretrained)


def _named(model: nn.Module, architecture: str, pretrained: Mapping[str, Any], clip_id: str, precision: str) -> Clip:
    def make_tokenizer() -> Any:
        with _quiet():
            return open_clip.get_tokenizer(architecture)

    mean = pretrained.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = pretrained.get("std", open_clip.OPENAI_DATASET_STD)
    return Clip(model, clip_id=clip_id, make_tokenizer=make_tokenizer, precision=precision, mean=mean, std=std)


def _is_tagged(name: str) -> bool:
    return "/" in name and name not in _PUBLISHED


def _split_tag(name: str) -> tuple[str, str]:
    """Architecture and tag of ``NAME/TAG`` or a published name; the tag ``openai`` selects the QuickGELU variant."""
    if _is_tagged(name):
        architecture, _, tag = name.rpartition("/")
    else:
        architecture, tag = name, "openai" if name in _PUBLISHED else ""
    architecture = _PUBLISHED.get(architecture, architecture)
    _check_architecture(architecture, name)
    if tag == "openai" and not architecture.endswith(_QUICK):
        architecture += _QUICK
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    plain = open_clip.list_pretrained_tags_by_model(architecture.removesuffix(_QUICK))
    if tag.lower().replace("-", "_") not in tags:
        near = difflib.get_close_matches(tag, tags or plain, 3, 0) or ["none known"]
        found = f"{architecture} has no weights tagged {tag!r}" if tag else f"{name!r} lacks the tag of its weights"
        raise InputError(f"{found}; give NAME/TAG, nearest: {', '.join(f'{architecture}/{t}' for t in near)}")
    return architecture, tag.lower().replace("-", "_")


def _check_architecture(architecture: str, given: str) -> None:
    known = open_clip.list_models()
    if architecture not in known:
        by_folded = {name.lower(): name for name in [*known, *_PUBLISHED]}
        near = [by_folded[name] for name in difflib.get_close_matches(given.lower(), by_folded, 3, 0)]
        raise InputError(
            f"unknown CLIP {given!r}: neither a file nor an open_clip model; nearest names: {', '.join(near)} "
            "(write NAME/TAG, such as ViT-B-16/openai)"
        )


def _cached_openai_file(pretrained: Mapping[str, Any]) -> Path | None:
    """The file of OpenAI's own package in ``~/.cache/clip``, if it is there and whole."""
    url = pretrained.get("url", "")
    path = Path.home() / ".cache" / "clip" / url.rpartition("/")[2]
    if "openaipublic" not in url or not path.is_file():
        return None
    if not url.split("/")[-2].startswith(file_fingerprint(path)):
        raise InputError(f"{path} is damaged (its checksum differs from OpenAI's); delete it or download it again")
    return path


def _download(name: str, pretrained: Mapping[str, Any]) -> Path:
    with _quiet():
        try:
            return Path(open_clip.download_pretrained(dict(pretrained)))
        except Exception as error:  # the hub and urllib raise many kinds
            url = pretrained.get("url", "")
            file = url.rpartition("/")[2]
            place = f"put {file} ({url}) into {Path.home() / '.cache' / 'clip'}, or " if "openaipublic" in url else ""
            raise InputError(
                f"the weights of {name} could not be downloaded ({_first_line(error)}); {place}give the path of a "
                "local weight file instead of the name"
            ) from error


def _create(architecture: str, precision: str) -> nn.Module:
    with _quiet():
        try:
            return open_clip.create_model(
                architecture,
                pretrained=None,
                load_weights=False,
                precision="fp32" if precision == "amp" else precision,
                pretrained_image=False,
                pretrained_text=False,
            )
        except Exception as error:
            raise InputError(f"open_clip cannot build {architecture}: {_first_line(error)}") from error


def _build(config: Mapping[str, Any], precision: str, seed: int, source: str) -> nn.Module:
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    # A file must not make us download anything.
    config["vision_cfg"].pop("timm_model_pretrained", None)
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    custom_text = config.pop("custom_text", False)
    cast = PRECISIONS[precision] if precision in ("bf16", "fp16") else None
    make = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    try:
        check_parameter_count(lambda: make(**copy.deepcopy(config), cast_dtype=cast), source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make(**config, cast_dtype=cast)
        _square_side(model.visual.image_size, source)
    except InputError:
        raise
    except Exception as error:  # whatever a setting of another type or size leads to
        raise InputError(f"open_clip cannot build the CLIP config of {source}: {_first_line(error)}") from error
    if cast is not None:
        open_clip.convert_weights_to_lp(model, dtype=cast)
    return model


def _freeze(model: nn.Module) -> nn.Module:
    model.eval().requires_grad_(False)
    for module in model.modules():
        # Also when a tower becomes part of a module that is trained: module.train() asks its children, which refuse.
        module.train = types.MethodType(_stay_in_evaluation, module)  # type: ignore[method-assign]
    return model


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


_stay_in_evaluation.__name__ = "train"  # a pickled bound method is looked up under this name again


def _text_tower(model: Any) -> Any:
    return model.text if hasattr(model, "text") else model


def _text_width(model: Any) -> int:
    text = _text_tower(model)
    if hasattr(text, "token_embedding"):
        return text.token_embedding.weight.shape[1]
    return text.config.hidden_size


def _embed_dim(model: Any) -> int:
    projection = getattr(_text_tower(model), "text_projection", None)
    if isinstance(projection, Tensor):
        return projection.shape[1]
    if isinstance(projection, nn.Linear):
        return projection.out_features
    output = getattr(_text_tower(model), "output_dim", None)
    return int(output) if output else _text_width(model)


def _square_side(size: int | tuple[int, ...], name: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise InputError(f"{name} takes images of {size} pixels; only square ones are supported")
    return sides.pop()


def _simple_tokenizer(context_length: int) -> Callable[[], Any]:
    return lambda: open_clip.SimpleTokenizer(context_length=context_length)


def _fingerprint(model: nn.Module, *, image: bool) -> str:
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        if name.startswith("visual") == image and name:
            digest.update(f"{name} {type(module).__name__} {getattr(module, 'num_heads', '')}\n".encode())
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("visual.") == image and name not in ("logit_scale", "logit_bias"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _config_hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()[:12]


def _file_id(path: Path) -> str:
    return f"file:{path.stem}#{file_fingerprint(path)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from logging to the root logger and warning; what matters becomes an exception here."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
