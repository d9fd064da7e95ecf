"""What stands for the classes in an evaluation: a learned prompt, templates, or a file of class embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.templates import PER_DATA_SET, load_templates, templates_of
from prompt_pretrain.vocabulary import Vocabulary


@dataclass(frozen=True)
class ClassFeatureSource:
    """One row of a comparison of prompts.

    Attributes:
        name: shown in tables and written to json.
        source: texts to encode, embeddings ready to use, or ``own`` or ``ensemble`` for templates that depend on the
            data set (see :func:`~prompt_pretrain.templates.templates_of`).
    """

    name: str
    source: ClassTexts | ClassEmbeddings | str

    @classmethod
    def parse(cls, kind: str, value: str) -> "ClassFeatureSource":
        """Read what an option names; fails before any model is loaded.

        Args:
            kind: ``prompt`` (a prompt file), ``template`` (a text with ``{}``, a set of templates such as
                ``imagenet80``, a data set's name, or ``own`` or ``ensemble`` for those of each set) or ``embeddings``
                (a file of class embeddings).
            value: the option's value; ``NAME=VALUE`` gives the row another name.
        Raises:
            InputError: a missing or unusable file, an unknown template.
        """
        name, found = "", value
        if "=" in value and not Path(value).exists():
            name, _, found = value.partition("=")
        if kind == "template" and found in PER_DATA_SET:
            return cls(name or f"{found} templates", found)
        if kind == "template":
            return cls(name or found, ClassTexts(templates=load_templates(found)))
        if kind == "prompt":
            if not Path(found).is_file():
                raise InputError(f"no prompt file {found}; give the file written by tools/pretrain_prompt.py")
            return cls(name or _short_name(Path(found)), ClassTexts.parse(found))
        return cls(name or _short_name(Path(found)), ClassEmbeddings.load(found))

    @property
    def learned_on(self) -> str:
        """The data set that a prompt was learned on; empty for templates and where the file does not say."""
        prompt = self.source.prompt if isinstance(self.source, ClassTexts) else None
        return "" if prompt is None else str(prompt.metadata.get("dataset", ""))

    def encode(self, clip: Clip, class_names: Sequence[str], data_set: str = "") -> Tensor:
        """(N, D) features on the CLIP's device, to be normalised by the reader.

        Args:
            data_set: registered name, for templates that depend on it.
        Raises:
            InputError: a prompt of another width, or embeddings of other classes, another width or another CLIP.
        """
        if isinstance(self.source, ClassEmbeddings):
            self.source.check(clip=clip, class_names=class_names)
            return self.source.embeddings.to(clip.device)
        texts = self.source
        if isinstance(texts, str):
            texts = ClassTexts(templates=templates_of(texts, data_set))
        return texts.encode(clip, Vocabulary("classes", tuple(class_names)))


def _short_name(path: Path) -> str:
    # Every run calls its prompts alike, in prompt_learner/; the run's own folder tells them apart.
    return f"{path.parent.parent.name}/{path.name}" if path.parent.name == "prompt_learner" else path.name
