"""What stands around a class name when it is encoded: a learned prompt or templates, and how names are spelled."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt, load_prompt, prompt_hash
from prompt_pretrain.prompt_tokens import clean_class_name
from prompt_pretrain.templates import DETECTION_PROMPTS, load_templates
from prompt_pretrain.text_encoder import encode_prompt, encode_templates
from prompt_pretrain.vocabulary import Vocabulary

_PROMPT_FILE = re.compile(r"\.(pth|pt|tar|npy|safetensors|bin|ckpt)(-\d+)?$")


def _underscored(name: str) -> str:
    return name.strip().replace("/ ", "/").replace(" ", "_")


# How a name of the data set is spelled in the text.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "clean": clean_class_name,
    "verbatim": lambda name: name,
    "fix_space": clean_class_name,
    "use_underscore": _underscored,
}


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """The recipe of a set of class embeddings, apart from the names and the CLIP.

    Attributes:
        prompt: learned context vectors; None for templates.
        templates: texts with ``{}``; several are an ensemble (normalised features, averaged, normalised).
        spelling: key of :data:`SPELLINGS`. Behind a learned prompt ``_`` always becomes a blank in the end.
        average_synonyms: take the mean of the raw features of all synonyms of a class; templates only.
    Raises:
        InputError: options that exclude each other.
    """

    prompt: SoftPrompt | None = None
    templates: tuple[str, ...] = ()
    spelling: str = "clean"
    average_synonyms: bool = False

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.templates):
            raise InputError("class embeddings are made from either a learned prompt or templates; give one of them")
        if self.spelling not in SPELLINGS:
            raise InputError(f"unknown spelling {self.spelling!r}; choose one of {', '.join(SPELLINGS)}")
        if self.average_synonyms and self.prompt is not None:
            raise InputError("synonyms are averaged with templates only; leave out avg_synonyms or give a template")

    @classmethod
    def parse(cls, text: str, *, spelling: str | None = None, average_synonyms: bool = False) -> "ClassTexts":
        """The recipe that ``text`` names: a prompt file, or anything that :func:`load_templates` takes.

        ``spelling`` defaults to the published rule: detection prompts (``a``, ``none``, ``photo``, ``scene``) take
        names as the data set spells them, all others clean ones.
        """
        if not text.strip():
            raise InputError("no prompt given; name a prompt file, a template with {} or a set of templates")
        if text in DETECTION_PROMPTS:
            return cls(None, load_templates(text), spelling or "verbatim", average_synonyms)
        if "{}" not in text and (os.path.isfile(text) or _PROMPT_FILE.search(text)):
            return cls(load_prompt(text), (), spelling or "clean", average_synonyms)
        return cls(None, load_templates(text), spelling or "clean", average_synonyms)

    @classmethod
    def of(cls, source: "ClassTexts | SoftPrompt | str | Sequence[str]") -> "ClassTexts":
        """A recipe from a prompt, a text (see :meth:`parse`) or a list of templates."""
        if isinstance(source, ClassTexts):
            return source
        if isinstance(source, SoftPrompt):
            return cls(source)
        return cls.parse(source) if isinstance(source, str) else cls(templates=tuple(source))

    @property
    def description(self) -> str:
        """One line for people: ``prompt 0123456789abcdef``, a template, or how many there are."""
        if self.prompt is not None:
            return f"prompt {prompt_hash(self.prompt)}"
        return self.templates[0] if len(self.templates) == 1 else f"{len(self.templates)} templates"

    def identity(self, vocabulary: Vocabulary) -> str:
        """JSON of everything but the CLIP that the embeddings of ``vocabulary`` depend on."""
        content: dict[str, Any] = {
            "class_names": vocabulary.class_names,
            "prompt_hash": prompt_hash(self.prompt) if self.prompt is not None else None,
            "templates": self.templates,
            "spelling": self.spelling,
        }
        if self.average_synonyms:
            content["synonyms"] = vocabulary.synonyms
        return json.dumps(content, ensure_ascii=False, sort_keys=True)

    def check(self, vocabulary: Vocabulary) -> None:
        """Fail before a model is loaded.

        Raises:
            InputError: a class-specific prompt for another number of classes, synonyms wanted but not known.
        """
        if self.prompt is not None and self.prompt.num_classes not in (None, len(vocabulary)):
            raise InputError(
                f"the prompt holds contexts of {self.prompt.num_classes} classes but vocabulary {vocabulary.name} has "
                f"{len(vocabulary)}; a class-specific prompt serves only the label set it was trained on"
            )
        if self.average_synonyms and not vocabulary.synonyms:
            raise InputError(f"vocabulary {vocabulary.name} has no synonyms to average; leave out avg_synonyms")

    def encode(self, clip: Clip, vocabulary: Vocabulary) -> Tensor:
        """Raw features (N, D), float32, on the CLIP's device; unit norm where an ensemble makes them so.

        Raises:
            InputError: as :meth:`check`; a prompt of another width; a name too long for the CLIP.
        """
        self.check(vocabulary)
        spell = SPELLINGS[self.spelling]
        if self.prompt is not None:
            if self.prompt.width != clip.text_width:
                raise InputError(
                    f"the prompt has width {self.prompt.width} but {clip.clip_id} has text width {clip.text_width}; "
                    "use the CLIP that the prompt was trained on"
                )
            return encode_prompt(clip, [spell(name) for name in vocabulary.class_names], self.prompt).float()
        groups = vocabulary.synonyms if self.average_synonyms else [(name,) for name in vocabulary.class_names]
        texts = [spell(name) for group in groups for name in group]
        features = encode_templates(clip, texts, self.templates, normalize=False, clean=False).float()
        if not self.average_synonyms:
            return features
        sizes = [len(group) for group in groups]
        return torch.stack([part.mean(dim=0) for part in features.split(sizes)])
