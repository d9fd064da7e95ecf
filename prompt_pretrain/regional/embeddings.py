"""Class embeddings of a regional prompt, in the suite's format and in the published containers."""

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.class_embeddings import FORMAT_VERSION, ClassEmbeddings, output_suffix
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.classes import RegionalClass, read_descriptions, read_json, regional_classes
from prompt_pretrain.regional.learner import RegionalPrompt
from prompt_pretrain.text_encoder import encode_templates

_LARGEST_HALF = 65504.0


def load_classes(
    annotations: str | os.PathLike, descriptions: str | os.PathLike | None = None
) -> tuple[RegionalClass, ...]:
    """All classes of an annotation file (or of any json with ``categories``), in the order of their ids.

    Args:
        descriptions: see :func:`~prompt_pretrain.regional.classes.read_descriptions`; None takes the file's ``def``.
    Raises:
        InputError: files that cannot be used.
    """
    content = read_json(annotations, ("categories",))
    texts = None if descriptions is None else read_descriptions(descriptions)
    return regional_classes(content["categories"], str(annotations), texts)


@torch.no_grad()
def regional_embeddings(learner: RegionalPrompt, classes: Sequence[RegionalClass], vocabulary: str) -> ClassEmbeddings:
    """Raw text features of ``classes`` behind the learned contexts; the names are those of the annotations.

    Args:
        vocabulary: what the classes are called, for people.
    """
    features = learner.class_features(learner.prepare([item.entry for item in classes]))
    contexts = torch.cat([learner.ctx1, learner.ctx2]).detach().cpu().contiguous()
    digest = hashlib.sha256(contexts.numpy().tobytes()).hexdigest()[:16]
    return ClassEmbeddings(
        features.float().cpu(),
        tuple(item.name for item in classes),
        learner.clip.clip_id,
        f"regional prompt {digest}, n = {learner.n_ctx}",
        {
            "recipe": "regional prompt with descriptions",
            "prompt_hash": digest,
            "vocabulary": vocabulary,
            "text_fingerprint": learner.clip.text_fingerprint,
            "entries_hash": hashlib.sha256("\n".join(item.entry for item in classes).encode()).hexdigest()[:16],
            "dot": "joint",
            "format_version": str(FORMAT_VERSION),
        },
    )


def described_embeddings(clip: Clip, classes: Sequence[RegionalClass], template: str) -> ClassEmbeddings:
    """Raw text features of a hand-made prompt such as ``a photo of a {}.``, where ``{}`` is "name, which is …"."""
    texts = [f"{item.name}, which is {item.description}" if item.description else item.name for item in classes]
    features = encode_templates(clip, texts, [template], normalize=False)
    names = tuple(item.name for item in classes)
    return ClassEmbeddings(features.float().cpu(), names, clip.clip_id, template.replace("{}", "{}, which is …"))


def save_embeddings(embeddings: ClassEmbeddings, path: str | os.PathLike) -> None:
    """Write ``.safetensors`` or ``.npy`` as every other export, or ``.pt``: the published tensor, float16 (C, D).

    Raises:
        InputError: another suffix, or values beyond float16 for ``.pt`` and ``.npy``.
    """
    check_suffix(path)
    if Path(path).suffix != ".pt":
        embeddings.save(path)
        return
    if embeddings.embeddings.abs().max() > _LARGEST_HALF:
        raise InputError(f"values above {_LARGEST_HALF:g} do not fit the float16 of .pt; write a .safetensors file")
    buffer = io.BytesIO()
    torch.save(embeddings.embeddings.half(), buffer)
    with atomic_writer(path) as file:
        file.write(buffer.getvalue())


def check_suffix(path: str | os.PathLike) -> None:
    """Raise unless :func:`save_embeddings` can write such a file."""
    if Path(path).suffix != ".pt":
        output_suffix(path)


def write_base_indices(classes: Sequence[RegionalClass], path: str | os.PathLike) -> None:
    """The published list of base classes: zero-based indices on one line, joined by ", "."""
    with atomic_writer(path, "w") as file:
        file.write(", ".join(str(index) for index, item in enumerate(classes) if item.base))


def write_entries(classes: Sequence[RegionalClass], path: str | os.PathLike) -> None:
    """The published list of descriptions, one line ``<folder> <name>_which_is_<description>`` per class."""
    with atomic_writer(path, "w") as file:
        file.writelines(f"{item.line}\n" for item in classes)
