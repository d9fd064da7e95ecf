"""Models that answer one question after the other: which of these words are in this picture?"""

import argparse
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from demo_parts.models import choose_classes, load_model
from demo_parts.outputs import draw
from PIL import Image

from prompt_pretrain.class_groups import ClassGroups
from prompt_pretrain.classification.decoding import ImageError
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.custom_vocabulary import check_class_names
from prompt_pretrain.errors import InputError

__all__ = ["OWN_PROMPT", "TEMPLATES", "Answer", "DemoSession", "example_pictures", "table_header"]
OWN_PROMPT = "the model's own"
TEMPLATES = ("a photo of a {}.", "imagenet80", "vild")


@dataclass(frozen=True)
class Answer:
    """What was found in a picture.

    Attributes:
        picture: (H, W, 3) RGB with the findings drawn over it.
        rows: per finding what :func:`table_header` says.
        note: one line for people.
    """

    picture: np.ndarray
    rows: list[list[Any]]
    note: str


def table_header(task: str) -> list[str]:
    """Columns of the table of a task."""
    return ["class", "score", "box"] if task == "detection" else ["class", "share", "pixels"]


class DemoSession:
    """Models by task, loaded when they are first asked. Their vocabularies are encoded once and kept in the cache.

    One question is answered at a time, from whatever thread it comes.
    """

    def __init__(self, options: Mapping[str, argparse.Namespace], prompts: Sequence[str] = ()) -> None:
        """Prepare for questions.

        Args:
            options: task -> options of :func:`~demo_parts.models.load_model`.
            prompts: files and templates that may be chosen, besides :data:`TEMPLATES` and any text with ``{}``. Those
                who ask may be strangers, who must not read other files.
        """
        self._options = dict(options)
        self.prompts = tuple(prompts)
        self._models: dict[str, Any] = {}
        self._own: dict[str, tuple[str, ...]] = {}  # classes that a model knew at first
        self._asked: dict[str, tuple[str, ...]] = {}  # what its classes are set to now
        self._clips: dict[str, Clip] = {}
        self._lock = threading.Lock()

    @property
    def tasks(self) -> list[str]:
        """Tasks that have a model."""
        return list(self._options)

    def load(self, task: str) -> Any:
        """The model of a task."""
        if task not in self._models:
            _, self._models[task] = load_model(self._options[task])
            self._own[task] = self._models[task].class_names
        return self._models[task]

    def look(
        self,
        image: Image.Image | np.ndarray | None,
        words: str,
        *,
        task: str,
        prompt: str = OWN_PROMPT,
        threshold: float = 0.5,
        background: str = "",
    ) -> Answer:
        """Answer one question.

        Args:
            image: RGB.
            words: "red car, traffic cone", names of one class separated by ``|``; empty for the model's own classes.
            prompt: :data:`OWN_PROMPT`, one of :attr:`prompts` or :data:`TEMPLATES`, or a text with ``{}``.
            threshold: least score of a detection.
            background: words for what is no class.
        Raises:
            InputError: no picture, bad words, an unknown prompt.
        """
        if image is None:
            raise InputError("no picture yet; upload one or pick an example")
        if prompt not in (OWN_PROMPT, *self.prompts, *TEMPLATES) and "{}" not in prompt:
            raise InputError(f"unknown prompt {prompt[:60]!r}; pick one, or write a text with {{}} where the word goes")
        began = time.monotonic()
        with self._lock:
            model = self.load(task)
            self._set_classes(task, model, _comma_list(words), prompt, background.strip())
            encoded = time.monotonic()
            pixels = np.ascontiguousarray(np.asarray(_rgb(image))[:, :, ::-1])
            try:
                result = model.predict(pixels)
            except ImageError as error:
                raise InputError(f"the picture cannot be used: {error.reason}") from error
        if task == "detection":
            result = result.above(threshold)
        done = time.monotonic()
        note = (
            f"{len(result)} found among {len(model.class_names)} classes; words {encoded - began:.1f} s, "
            f"picture {done - encoded:.1f} s"
        )
        return Answer(draw(task, result, pixels), _rows(task, result), note)

    def _set_classes(self, task: str, model: Any, words: str, prompt: str, background: str) -> None:
        asked = (words, prompt, background)  # encoded again only when something of it changes
        if self._asked.get(task) == asked:
            return
        texts = None if prompt == OWN_PROMPT else prompt
        options = argparse.Namespace(
            custom_vocabulary=words, vocabulary=None, synonyms=False, background=background, parents=None
        )
        classes: Any = choose_classes(options, self._own[task])
        if classes is None:
            classes = self._own[task]
        elif not isinstance(classes, ClassGroups):
            classes = check_class_names(classes.class_names, "the list of words")
        if task == "detection":
            from detection.custom_vocabulary import class_texts_of

            recipe, clip_name = class_texts_of(model.cfg, texts)
            model.set_classes(classes, prompt=recipe, clip=self._clip(clip_name, model.device))
        else:
            model.set_classes(classes, prompt=texts)
        self._asked[task] = asked

    def _clip(self, name: str, device: Any) -> Clip:
        """A CLIP that is loaded once."""
        if name not in self._clips:
            self._clips[name] = load_clip(name, device=device)
        return self._clips[name]


def _comma_list(words: str) -> str:
    """What was typed, in a form that is never taken for a file or data set."""
    parts = [part.strip() for part in words.replace("\n", ",").split(",")]
    return "".join(f"{part}," for part in parts if part)


def _rgb(image: Image.Image | np.ndarray) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")


def _rows(task: str, result: Any) -> list[list[Any]]:
    if task == "detection":
        return [
            [found.class_name, f"{found.score:.2f}", ", ".join(f"{value:.0f}" for value in found.box)]
            for found in result
        ]
    return [[found.class_name, f"{found.share:.1%}", found.area] for found in result]


def example_pictures(folder: str | None, limit: int = 12) -> Sequence[str]:
    """Images of a folder to pick from."""
    from demo_parts.inputs import find_sources

    return [str(path) for path in find_sources([folder]).images[:limit]] if folder else []
