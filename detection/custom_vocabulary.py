"""Class embeddings of any vocabulary for a detector that was trained with another one."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from detectron2.config import CfgNode
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.vocabulary import Vocabulary, clean_class_name, find_ties, load_vocabulary

__all__ = ["check_class_names", "class_texts_of", "embed_classes", "embed_names"]
_log = logging.getLogger(__name__)
# What the released embedding files are made of: (part of the file's name, prompt, CLIP).
_PUBLISHED_TEXTS = (("_clip_a+cname", "a", "ViT-B/32"),)
_POMP_FILE = "_pomp+cname"


def class_texts_of(
    cfg: CfgNode, prompt: ClassTexts | SoftPrompt | str | None = None
) -> tuple[ClassTexts | SoftPrompt | str, str]:
    """The prompt and the name of the CLIP that class embeddings for a model of this config are made with.

    Args:
        prompt: takes the place of the config's.
    Raises:
        InputError: the config names neither a prompt nor a published embedding file.
    """
    node, path = cfg.MODEL.CLASS_EMBEDDINGS, cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH
    if node.PROMPT or prompt is not None:
        return (prompt if prompt is not None else node.PROMPT), node.CLIP
    for part, text, clip in _PUBLISHED_TEXTS:
        if part in Path(path).name:
            return text, clip
    why = "its embeddings come from a POMP prompt" if _POMP_FILE in Path(path).name else "it names none"
    raise InputError(
        f"new classes need the prompt that this model was trained with, and {why}; set MODEL.CLASS_EMBEDDINGS.PROMPT "
        "to the prompt's file or a template (and MODEL.CLASS_EMBEDDINGS.CLIP to its CLIP), or give class embeddings"
    )


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
