"""Everything that can be told about one learned prompt, beside a hand-written one: numbers, words, pictures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from prompt_pretrain.analysis import NearestWord, alignment, nearest_words, project_classes_and_images, uniformity
from prompt_pretrain.analysis import project as project_features
from prompt_pretrain.classification.items import ImageItem
from prompt_pretrain.classification.transforms import eval_transform
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_cache import FeatureCache
from prompt_pretrain.plots import OTHERS, plot_projection
from prompt_pretrain.prompt import SoftPrompt, prompt_hash
from prompt_pretrain.text_encoder import encode_prompt, encode_templates

_MOST_HIGHLIGHTED = 7
_MOST_POINTS = 3000  # classes, and images, in a picture


@dataclass(frozen=True)
class PromptAnalysis:
    """``numbers``: prompt name → measure → value. ``words``: per context vector. ``figures``: by file name."""

    prompt: SoftPrompt
    clip_id: str
    words: list[list[NearestWord]]
    vector_norms: list[float]
    numbers: dict[str, dict[str, float]]
    figures: dict[str, Figure] = field(default_factory=dict)

    def text(self) -> str:
        """For people, in lines."""
        ctx = self.prompt.ctx
        lines = [f"prompt {prompt_hash(self.prompt)}: ctx {tuple(ctx.shape)}, class name at the {self.prompt.position}"]
        lines += [f"  {name}: {value}" for name, value in self.prompt.metadata.items()]
        if self.words:
            lines.append(f"nearest words in the vocabulary of {self.clip_id} (Euclidean distance):")
            for index, (row, norm) in enumerate(zip(self.words, self.vector_norms, strict=True), start=1):
                shown = ", ".join(f"{word.word!r} {word.distance:.3f}" for word in row)
                lines.append(f"  v{index} (norm {norm:.3f}): {shown}")
        else:
            lines.append("nearest words: the prompt is class specific, so choose a class with --class-index")
        for name, values in self.numbers.items():
            lines.append(f"{name}: " + ", ".join(f"{measure} {value:.4f}" for measure, value in values.items()))
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": prompt_hash(self.prompt),
            "shape": list(self.prompt.ctx.shape),
            "position": self.prompt.position,
            "metadata": self.prompt.metadata,
            "clip": self.clip_id,
            "vector_norms": self.vector_norms,
            "nearest_words": [
                [{"word": w.word, "token_id": w.token_id, "distance": w.distance} for w in row] for row in self.words
            ],
            "numbers": self.numbers,
        }


def analyse_prompt(
    clip: Clip,
    prompt: SoftPrompt,
    class_names: Sequence[str] | None = None,
    *,
    items: Sequence[ImageItem] = (),
    template: str = "a photo of a {}.",
    words: int = 5,
    class_index: int | None = None,
    highlight: Sequence[str] = (),
    method: str = "pca",
    cache_folder: str | os.PathLike | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> PromptAnalysis:
    """Analyse ``prompt``; with class names also their uniformity and a picture, with images alignment too.

    Args:
        items: images labelled by ``class_names``.
        template: the hand-written prompt to compare with.
        words: nearest words per context vector.
        class_index: of a class-specific prompt, the class whose vectors get nearest words.
        highlight: up to seven classes to colour, by name; default the first ones (with images, if there are any).
        method: of the pictures, ``pca`` or ``tsne``.
        cache_folder: of image features.
    Raises:
        InputError: a prompt of another width, an unknown class, too few classes for a picture.
    """
    if prompt.width != clip.text_width:
        raise InputError(
            f"the prompt has width {prompt.width} but {clip.clip_id} has text width {clip.text_width}; "
            "give the CLIP that it was trained with by --clip"
        )
    ctx = _shown_vectors(prompt, class_index)
    numbers: dict[str, dict[str, float]] = {}
    figures = {}
    if class_names is not None:
        features = {
            template: encode_templates(clip, class_names, [template]).cpu(),
            "learned prompt": encode_prompt(clip, class_names, prompt).cpu(),
        }
        images = labels = None
        if len(items):
            transform = eval_transform(clip.image_size, clip.mean, clip.std)
            cache = FeatureCache.build(
                clip, items, transform, folder=cache_folder, num_workers=num_workers, progress=progress
            )
            usable = cache.valid.nonzero()[0]
            images = torch.from_numpy(cache.features[usable, 0].astype(np.float32))
            labels = torch.from_numpy(cache.labels[usable])
        for name, rows in features.items():
            numbers[name] = {"uniformity": uniformity(rows)} if len(rows) > 1 else {}
            if images is not None and labels is not None:
                numbers[name]["alignment"] = alignment(images, rows, labels)
        chosen = _highlighted(class_names, highlight, labels)
        for key, (name, rows) in zip(("hand_written", "learned"), features.items(), strict=True):
            figures[key] = _picture(rows, images, labels, class_names, chosen, method, f"Classes with: {name}")
    return PromptAnalysis(
        prompt,
        clip.clip_id,
        [] if ctx is None else nearest_words(ctx, clip, count=words),
        [] if ctx is None else ctx.detach().norm(dim=1).tolist(),
        numbers,
        figures,
    )


def _shown_vectors(prompt: SoftPrompt, class_index: int | None) -> Tensor | None:
    """(M, W), or None for a class-specific prompt without a chosen class."""
    if not prompt.class_specific:
        return prompt.ctx
    if class_index is None:
        return None
    if not 0 <= class_index < len(prompt.ctx):
        raise InputError(f"--class-index {class_index} is not among the prompt's {len(prompt.ctx)} classes (from 0)")
    return prompt.ctx[class_index]


def _highlighted(class_names: Sequence[str], wanted: Sequence[str], labels: Tensor | None) -> list[int]:
    if len(wanted) > _MOST_HIGHLIGHTED:
        raise InputError(f"{len(wanted)} classes to highlight, but colours are told apart for {_MOST_HIGHLIGHTED} only")
    for name in wanted:
        if name not in class_names:
            raise InputError(f"no class {name!r} to highlight; spell it as the vocabulary does")
    if wanted:
        return [class_names.index(name) for name in wanted]
    candidates = range(len(class_names)) if labels is None else torch.unique(labels).tolist()
    return list(candidates)[:_MOST_HIGHLIGHTED]


def _picture(
    class_features: Tensor,
    images: Tensor | None,
    labels: Tensor | None,
    class_names: Sequence[str],
    chosen: Sequence[int],
    method: str,
    title: str,
) -> Figure:
    # The coloured classes first, so that a large vocabulary leaves none of them out.
    order = [*chosen, *(i for i in range(len(class_names)) if i not in set(chosen))][:_MOST_POINTS]
    groups = [class_names[i] if i in chosen else OTHERS for i in order]
    if images is None or labels is None:
        return plot_projection(project_features(class_features[order], method), groups, None, [], title=title)
    shown = torch.isin(labels, torch.tensor(chosen))
    if int(shown.sum()) == 0:
        raise InputError("none of the classes to highlight has images; choose others with --highlight")
    kept, kept_labels = images[shown][:_MOST_POINTS], labels[shown][:_MOST_POINTS]
    classes, pictures = project_classes_and_images(class_features[order], kept, method)
    return plot_projection(classes, groups, pictures, [class_names[i] for i in kept_labels.tolist()], title=title)
