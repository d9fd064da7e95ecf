"""Class embeddings of any vocabulary for a model that was trained with another one."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.vocabulary import Vocabulary, clean_class_name, find_ties, load_vocabulary

__all__ = ["check_class_names", "embed_classes", "embed_names", "is_embedding_file"]
_log = logging.getLogger(__name__)
_EMBEDDING_SUFFIXES = (".npy", ".safetensors", ".pt", ".pth")


def embed_classes(
    classes: Sequence[str] | Vocabulary | str | os.PathLike,
    prompt: ClassTexts | SoftPrompt | str,
    clip: Clip | str,
    *,
    cache_dir: str = "",
    device: str | torch.device = "cpu",
) -> ClassEmbeddings:
    """Class embeddings of names or of a vocabulary, encoded once and then taken from the cache.

    Raises:
        InputError: empty names, an unknown vocabulary, a prompt or CLIP that cannot be read or do not fit.
    """
    if isinstance(classes, str | os.PathLike):
        classes = load_vocabulary(classes)
    if not isinstance(classes, Vocabulary):
        classes = Vocabulary("custom", check_class_names(classes, "the list of classes"))
    texts = ClassTexts.of(prompt)
    texts.check(classes)
    if isinstance(clip, str):
        clip = load_clip(clip, device=device)
    return ClassEmbeddings.cached(clip, classes, texts, cache_dir=cache_dir or None)


def embed_names(embeddings: ClassEmbeddings, names: Sequence[str] | str) -> ClassEmbeddings:
    """The same embeddings with class names: those of a list, or of the vocabulary that a text names.

    Raises:
        InputError: another number of names, or the embeddings have other names already.
    """
    names = load_vocabulary(names).class_names if isinstance(names, str) else tuple(names)
    embeddings.check(class_names=names)
    return replace(embeddings, class_names=tuple(names))


def is_embedding_file(classes: Any) -> bool:
    """Whether ``classes`` is the path of class embeddings, and not a vocabulary."""
    return isinstance(classes, str | os.PathLike) and Path(classes).suffix.lower() in _EMBEDDING_SUFFIXES


def check_class_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """The names, if all of them say something; a warning for those that no prompt tells apart.

    Raises:
        InputError: no names, an empty one, or something that is no text.
    """
    if not names:
        raise InputError(f"{source} is empty; give at least one class name")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not clean_class_name(name).strip():
            raise InputError(f"{source}: class {number} has the name {name!r}; expected a text")
    for tied, members in find_ties(names).items():
        _log.warning("%s names %r %d times: equal features, the first one always wins", source, tied, len(members))
    return tuple(names)
