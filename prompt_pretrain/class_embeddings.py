"""Class embeddings: one row of text features per class, with what they were made of; files, checks, cache, config keys.

They are all that detection, segmentation and zero-shot classification need of a vocabulary. Rows are raw text features,
not normalised: consumers normalise.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from iopath.common.file_io import file_lock
from torch import Tensor

from prompt_pretrain.array_files import read_npy
from prompt_pretrain.atomic_files import write_npy, write_safetensors
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.errors import InputError, reason_of
from prompt_pretrain.prompt import SoftPrompt, prompt_hash
from prompt_pretrain.safe_pickle import check_unfolded
from prompt_pretrain.vocabulary import Vocabulary, clean_class_name, load_vocabulary

__all__ = ["ClassEmbeddings", "add_class_embeddings_config", "resolve_class_embeddings"]
_log = logging.getLogger(__name__)
FORMAT_VERSION = 1
_LARGEST_HALF = 65504.0


@dataclass(frozen=True, eq=False)
class ClassEmbeddings:
    """N class embeddings of width D.

    Attributes:
        embeddings: (N, D) float32, raw.
        class_names: N names as the vocabulary spells them; empty where a file does not tell.
        clip_id: the CLIP whose text tower made them; empty where a file does not tell. Embeddings of different CLIPs
            are unrelated: never mix or compare them.
        prompt: what stood around the names, for people.
        metadata: further facts as text: ``prompt_hash``, ``recipe``, ``vocabulary``, ``dot``, ``format_version`` …
        source: the file they were read from, for messages.
    """

    embeddings: Tensor
    class_names: tuple[str, ...] = ()
    clip_id: str = ""
    prompt: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = "the set"

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def width(self) -> int:
        """D."""
        return self.embeddings.shape[1]

    def normalized(self) -> Tensor:
        """(N, D) unit-norm rows."""
        return torch.nn.functional.normalize(self.embeddings, dim=1)

    def shuffled(self, seed: int) -> "ClassEmbeddings":
        """The same names with rows in random order: what is left when names no longer tell what they mean."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        prompt = f"shuffled: {self.prompt}"
        return dataclasses.replace(self, embeddings=self.embeddings[order], prompt=prompt, source="the shuffled set")

    @classmethod
    def make(
        cls,
        clip: Clip,
        vocabulary: Vocabulary | Sequence[str],
        texts: ClassTexts | SoftPrompt | str | Sequence[str],
    ) -> "ClassEmbeddings":
        """Encode a vocabulary.

        Args:
            vocabulary: a :class:`Vocabulary`, or class names.
            texts: a prompt; a prompt file, template or set of templates by name; templates; or a full recipe.
        Raises:
            InputError: a prompt that does not fit the CLIP or the vocabulary, a name too long.
        """
        vocabulary, texts = _as_vocabulary(vocabulary), ClassTexts.of(texts)
        embeddings = texts.encode(clip, vocabulary).cpu()
        _check_values(embeddings, f"the class embeddings made with {clip.clip_id} ({clip.precision})")
        metadata = {
            "vocabulary": vocabulary.name,
            "text_fingerprint": clip.text_fingerprint,
            "spelling": texts.spelling,
            "templates": json.dumps(texts.templates),
            "average_synonyms": str(texts.average_synonyms).lower(),
            "dot": "joint",
            "format_version": str(FORMAT_VERSION),
        }
        if texts.prompt is not None:
            metadata["prompt_hash"] = prompt_hash(texts.prompt)
        return cls(embeddings, vocabulary.class_names, clip.clip_id, texts.description, metadata)

    @classmethod
    def cached(
        cls,
        clip: Clip,
        vocabulary: Vocabulary | Sequence[str],
        texts: ClassTexts | SoftPrompt | str | Sequence[str],
        *,
        cache_dir: str | os.PathLike | None = None,
    ) -> "ClassEmbeddings":
        """:meth:`make`, or what an earlier call with equal prompt, names and text tower left in the cache.

        Any number of processes may ask at once: one encodes, the others wait for its file. A damaged file is made
        again; a folder that cannot be written to costs time only.

        Args:
            cache_dir: default ``class_embeddings`` below ``~/.cache/prompt_pretrain``.
        """
        vocabulary, texts = _as_vocabulary(vocabulary), ClassTexts.of(texts)
        identity = f"{FORMAT_VERSION}\n{clip.clip_id}\n{clip.text_fingerprint}\n{texts.identity(vocabulary)}"
        folder = Path(cache_dir) if cache_dir else default_cache_folder()
        path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
        found = _read_cached(path)
        if found is not None:
            return found
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with file_lock(str(path)):
                found = _read_cached(path)
                if found is not None:
                    return found
                made = cls.make(clip, vocabulary, texts)
                _try_to_save(made, path)
                return made
        except OSError as error:
            _log.warning("class embeddings are not cached, %s: %s", folder, error.strerror or error)
            return cls.make(clip, vocabulary, texts)

    def save(self, path: str | os.PathLike) -> None:
        """Write atomically: ``.npy`` as Detic reads it (float16, C order, rows only), ``.safetensors`` with all facts.

        Raises:
            InputError: another suffix, or values that float16 cannot hold.
        """
        suffix = output_suffix(path)
        if suffix == ".npy":
            if self.embeddings.abs().max() > _LARGEST_HALF:
                raise InputError(
                    f"values above {_LARGEST_HALF:g} do not fit the float16 of .npy; write a .safetensors file"
                )
            write_npy(path, np.ascontiguousarray(self.embeddings.numpy().astype(np.float16)))
            return
        metadata = {**self.metadata, "clip_id": self.clip_id, "prompt": self.prompt}
        metadata["class_names"] = json.dumps(self.class_names, ensure_ascii=False)
        write_safetensors(path, {"embeddings": self.embeddings}, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike, class_names: Sequence[str] | None = None) -> "ClassEmbeddings":
        """Read ``.npy`` (as published for Detic), ``.safetensors`` (ours) or a bare tensor in a torch file.

        Args:
            class_names: names for a file that holds none; a file that holds other ones is an error.
        Raises:
            InputError: missing or damaged file, wrong shape, values not finite, rows of zeros, other names.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no class embeddings {path}; make them with tools/export_class_embeddings.py")
        array, metadata = _READERS.get(path.suffix, _read_torch)(path)
        if array.ndim != 2 or 0 in array.shape or not array.is_floating_point():
            raise InputError(
                f"{path} holds {array.dtype} of shape {tuple(array.shape)}; expected floats (classes, width)"
            )
        embeddings = array.float().contiguous()
        _check_values(embeddings, str(path))
        names = _stored_names(metadata, path)
        loaded = cls(embeddings, names, metadata.pop("clip_id", ""), metadata.pop("prompt", ""), metadata, str(path))
        if names and len(names) != len(embeddings):
            raise InputError(f"{path} holds {len(embeddings)} class embeddings but {len(names)} names; export it again")
        if class_names is not None:
            loaded.check(class_names=class_names)
            loaded = dataclasses.replace(loaded, class_names=tuple(class_names))
        return loaded

    def check(
        self,
        *,
        width: int | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        clip: Clip | None = None,
        key: str = "MODEL.ROI_HEADS.NUM_CLASSES",
    ) -> None:
        """Fail unless the set has this width, these classes and, where it tells, this CLIP.

        Args:
            width: D. num_classes: N, as set by the config key ``key``. class_names: names in label order, compared as
                prompts spell them (``_`` as blank, case ignored); files without names are checked for their number.
        Raises:
            InputError: says what differs and what to change.
        """
        if clip is not None:
            if self.clip_id and self.clip_id != clip.clip_id:
                raise InputError(
                    f"{self.source} was made by {self.clip_id} but {clip.clip_id} is in use and their features are "
                    "unrelated; use the same CLIP or export the embeddings again"
                )
            width = clip.embed_dim
        if width is not None and self.width != width:
            raise InputError(
                f"{self.source} holds embeddings of width {self.width} but the model's features have {width}; "
                "export them with the model's CLIP"
            )
        if num_classes is not None and len(self) != num_classes:
            raise InputError(
                f"{self.source} holds {len(self)} class embeddings but {key} is {num_classes}; give this dataset's "
                f"file or set {key.rpartition('.')[2]} to {len(self)}"
            )
        if class_names is not None:
            self._check_names(class_names)

    def _check_names(self, class_names: Sequence[str]) -> None:
        if len(self) != len(class_names):
            raise InputError(
                f"{self.source} holds {len(self)} class embeddings but the vocabulary has {len(class_names)} names; "
                "give the file of this vocabulary, or export one with tools/export_class_embeddings.py"
            )
        for row, (mine, other) in enumerate(zip(self.class_names, class_names, strict=False)):
            if clean_class_name(mine).strip().lower() != clean_class_name(other).strip().lower():
                raise InputError(
                    f"row {row} of {self.source} is {mine!r} but class {row} of the vocabulary is {other!r}; give the "
                    "file of this vocabulary, or export one with tools/export_class_embeddings.py"
                )


def default_cache_folder() -> Path:
    """``$XDG_CACHE_HOME/prompt_pretrain/class_embeddings``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "prompt_pretrain" / "class_embeddings"


def output_suffix(path: str | os.PathLike) -> str:
    """``.npy`` or ``.safetensors``; anything else is an :class:`InputError`."""
    suffix = Path(path).suffix
    if suffix not in (".npy", ".safetensors"):
        raise InputError(
            f"class embeddings are written as .npy (for Detic) or .safetensors (with names), not to {path}"
        )
    return suffix


def add_class_embeddings_config(cfg: CfgNode) -> None:
    """Add ``MODEL.CLASS_EMBEDDINGS`` in place: where the embeddings of a model's classes come from."""
    if "MODEL" not in cfg:
        cfg.MODEL = type(cfg)()
    node = cfg.MODEL.CLASS_EMBEDDINGS = type(cfg)()
    # A learned prompt's file, a template such as "a photo of a {}.", or a set of templates ("imagenet80", "vild").
    node.PROMPT = ""
    # Published name, open_clip NAME/TAG, or a weight file; must be the CLIP that the prompt was trained on.
    node.CLIP = "ViT-B/16"
    # Data set name ("lvis_v1", "coco"), .txt or .json file, or a comma list.
    node.VOCABULARY = ""
    # A ready file (.npy, .safetensors); then PROMPT and CLIP are not used, and VOCABULARY only to check it.
    node.PATH = ""
    # Where encoded vocabularies are kept; "": ~/.cache/prompt_pretrain/class_embeddings
    node.CACHE_DIR = ""


def resolve_class_embeddings(
    cfg: CfgNode, *, num_classes: int | None = None, device: str | torch.device = "cpu"
) -> ClassEmbeddings:
    """The class embeddings that ``cfg.MODEL.CLASS_EMBEDDINGS`` asks for: read from PATH, or encoded and cached.

    Every process of a distributed run may call it at once; one encodes, the others wait.

    Raises:
        InputError: incomplete or wrong settings, or another number of classes than ``num_classes``.
    """
    node = cfg.MODEL.CLASS_EMBEDDINGS
    if node.PATH:
        names = load_vocabulary(node.VOCABULARY).class_names if node.VOCABULARY else None
        found = ClassEmbeddings.load(node.PATH, names)
    else:
        missing = [key for key in ("VOCABULARY", "PROMPT", "CLIP") if not node[key]]
        if missing:
            keys = ", ".join(f"MODEL.CLASS_EMBEDDINGS.{key}" for key in missing)
            raise InputError(f"no class embeddings: {keys} not set; set them, or MODEL.CLASS_EMBEDDINGS.PATH to a file")
        texts, vocabulary = ClassTexts.parse(node.PROMPT), load_vocabulary(node.VOCABULARY)
        texts.check(vocabulary)
        clip = load_clip(node.CLIP, device=device)
        found = ClassEmbeddings.cached(clip, vocabulary, texts, cache_dir=node.CACHE_DIR or None)
    found.check(num_classes=num_classes)
    return found


def _as_vocabulary(vocabulary: Vocabulary | Sequence[str]) -> Vocabulary:
    return vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary("custom", tuple(vocabulary))


def _check_values(embeddings: Tensor, source: str) -> None:
    bad = (~embeddings.isfinite()).any(dim=1) | (embeddings == 0).all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise InputError(f"{source}: row {row} is zero or not finite, as are {int(bad.sum())} in all; export it again")


def _read_cached(path: Path) -> ClassEmbeddings | None:
    try:
        return ClassEmbeddings.load(path) if path.is_file() else None
    except InputError as error:
        _log.warning("made again: %s", error)
        return None


def _try_to_save(made: ClassEmbeddings, path: Path) -> None:
    try:
        made.save(path)
    except OSError as error:
        _log.warning("class embeddings are not cached, %s: %s", path, error.strerror or error)


def _stored_names(metadata: dict[str, Any], path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(metadata.pop("class_names", "[]"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the class names in {path} are damaged ({error}); export it again") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"the class names in {path} are no list of texts; export it again")
    return tuple(names)


def _read_npy(path: Path) -> tuple[Tensor, dict[str, str]]:
    array = read_npy(path)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path} holds an array of {array.dtype}; expected numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="))), {}


def _read_safetensors(path: Path) -> tuple[Tensor, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if "embeddings" not in file.keys():  # noqa: SIM118 (not a mapping)
                raise InputError(f"{path} holds no 'embeddings'; expected a file of tools/export_class_embeddings.py")
            return file.get_tensor("embeddings"), metadata
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file or is cut short ({reason_of(error)}); get it again") from error


def _read_torch(path: Path) -> tuple[Tensor, dict[str, str]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged and for refused files
        raise InputError(f"{path} does not load as a plain tensor; give a .npy or .safetensors file") from error
    if not isinstance(content, Tensor):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a tensor (classes, width)")
    check_unfolded(content, path)
    return content, {}


_READERS = {".npy": _read_npy, ".safetensors": _read_safetensors}
