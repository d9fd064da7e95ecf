"""Several names for one class, words for everything else, and parents of classes: what is scored, and what is reported.

A model scores *names*; results speak of *classes*. Every helper is optional, and they combine::

    groups = ClassGroups.of(load_vocabulary("car|automobile,dog,cat,tree"), background=("wall", "floor"))
    groups = groups.with_parents({"animal": ("dog", "cat")})
    detector.set_classes(groups)
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prompt_pretrain.custom_vocabulary import check_class_names
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt_tokens import clean_class_name
from prompt_pretrain.vocabulary import Vocabulary

__all__ = ["BACKGROUND", "ClassGroups", "read_parents"]
BACKGROUND = "background"
_AGGREGATIONS = ("max", "sum")


@dataclass(frozen=True)
class ClassGroups:
    """Names that are scored, each belonging to a class that is reported.

    Attributes:
        names: what is encoded, without repetitions.
        members: per name the position of its class.
        class_names: what results report; where there are background words, :data:`BACKGROUND` comes last.
        has_background: whether it does. Detections of it are dropped, pixels of it are labelled so.
        aggregation: how scores of names become that of their class: "max", or "sum" (label maps only; detections are
            always the best of their names).
    """

    names: tuple[str, ...]
    members: tuple[int, ...]
    class_names: tuple[str, ...]
    has_background: bool = False
    aggregation: str = "max"

    @classmethod
    def of(
        cls,
        classes: Vocabulary | Sequence[str],
        *,
        synonyms: bool = True,
        background: Sequence[str] = (),
        aggregation: str = "max",
    ) -> "ClassGroups":
        """Groups of a vocabulary.

        A name that several classes have counts for the one that is called so, else for the first.

        Args:
            synonyms: also look for the other names of the classes, where the vocabulary knows them.
            background: words for what is no class, such as "wall" or "other": they win where nothing else fits.
        Raises:
            InputError: a background word that is a class, a class called "background" beside background words, empty
                words, an unknown aggregation.
        """
        if aggregation not in _AGGREGATIONS:
            raise InputError(f"aggregation is {aggregation!r}; expected one of {', '.join(_AGGREGATIONS)}")
        if not isinstance(classes, Vocabulary):
            classes = Vocabulary("custom", check_class_names(classes, "the list of classes"))
        owners: dict[str, tuple[str, int]] = {}  # name as prompts see it -> its spelling, its class
        for position, name in enumerate(classes.class_names):
            owners.setdefault(_folded(name), (name, position))
        if synonyms:
            for position, others in enumerate(classes.synonyms):
                for name in (
                    check_class_names(others, f"synonyms of {classes.class_names[position]!r}") if others else ()
                ):
                    owners.setdefault(_folded(name), (name, position))
        class_names = classes.class_names
        if background:
            _check_background(background, owners)
            for name in background:
                owners.setdefault(_folded(name), (name, len(class_names)))
            class_names = (*class_names, BACKGROUND)
        names, members = zip(*owners.values(), strict=True)
        return cls(names, members, class_names, bool(background), aggregation)

    def with_parents(self, parents: Mapping[str, Sequence[str]]) -> "ClassGroups":
        """The same names, where the children of each parent are reported as the parent.

        A parent may be a class itself; classes without a parent stay.

        Raises:
            InputError: a child that is no class, or has two parents.
        """
        positions = {_folded(name): position for position, name in enumerate(self.reported_names)}
        parent_of: dict[int, str] = {}
        for parent, children in parents.items():
            check_class_names((parent,), "the parents")
            own = [parent] if _folded(parent) in positions else []
            for child in (*own, *children):
                position = positions.get(_folded(child))
                if position is None:
                    near = difflib.get_close_matches(child, self.reported_names, 1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise InputError(f"{child!r}, a child of {parent!r}, is no class of the vocabulary{hint}")
                if parent_of.setdefault(position, parent) != parent:
                    raise InputError(
                        f"class {child!r} has two parents, {parent_of[position]!r} and {parent!r}; give it one"
                    )
        reported = [parent_of.get(position, name) for position, name in enumerate(self.class_names)]
        class_names = tuple(dict.fromkeys(reported))  # a parent stands where its first child stood
        moved = [class_names.index(name) for name in reported]
        return replace(self, members=tuple(moved[member] for member in self.members), class_names=class_names)

    @property
    def reported_names(self) -> tuple[str, ...]:
        """Class names without the background."""
        return self.class_names[:-1] if self.has_background else self.class_names

    def class_of(self, name_ids: Tensor) -> Tensor:
        """Positions of classes from positions of names, any shape."""
        return torch.tensor(self.members, device=name_ids.device)[name_ids]

    def aggregate(self, scores: Tensor, dim: int = 0) -> Tensor:
        """Scores of classes along ``dim`` from scores of names: the best, or with "sum" the sum."""
        scores = scores.movedim(dim, 0)
        index = torch.tensor(self.members, device=scores.device)
        shape = (len(self.class_names), *scores.shape[1:])
        if self.aggregation == "sum":
            return scores.new_zeros(shape).index_add_(0, index, scores).movedim(0, dim)
        found = scores.new_full(shape, -torch.inf)
        index = index.view(-1, *[1] * (scores.ndim - 1)).expand_as(scores)
        return found.scatter_reduce_(0, index, scores, "amax").movedim(0, dim)


def read_parents(spec: str) -> dict[str, tuple[str, ...]]:
    """Parents and their children.

    Args:
        spec: a ``.json`` file with ``{"vehicle": ["car", "bus"]}``; a ``.txt`` file with lines ``vehicle: car, bus``;
            or such lines typed with ``;`` between them.
    Raises:
        InputError: no such file, a damaged one, a line without children, a parent given twice.
    """
    path = Path(spec)
    if path.suffix.lower() in (".txt", ".json"):
        if not path.is_file():
            raise InputError(f"no file of parents {path}; check the path")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return _parents_of_json(path, text)
        lines, source = text.splitlines(), str(path)
    else:
        lines, source = spec.split(";"), "the parents"
    parents: dict[str, tuple[str, ...]] = {}
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        parent, colon, rest = line.partition(":")
        children = tuple(child.strip() for child in rest.split(",") if child.strip())
        if not colon or not parent.strip() or not children:
            raise InputError(f"{source}: {line[:60]!r} names no children; write 'vehicle: car, bus'")
        if parent.strip() in parents:
            raise InputError(f"{source}: the parent {parent.strip()!r} is given twice; join its children in one line")
        parents[parent.strip()] = children
    if not parents:
        raise InputError(f"{source}: no parents; write 'vehicle: car, bus'")
    return parents


def _parents_of_json(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is no valid JSON ({error}); mend it") from error
    usable = isinstance(content, dict) and content and all(map(_is_list_of_names, content.values()))
    if not usable:
        raise InputError(f'{path}: expected {{"parent": ["child", …], …}}')
    return {parent: tuple(children) for parent, children in content.items()}


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _check_background(words: Iterable[str], owners: Mapping[str, tuple[str, int]]) -> None:
    for word in check_class_names(tuple(words), "the background words"):
        if _folded(word) in owners:
            raise InputError(f"background word {word!r} is a name of class {owners[_folded(word)][0]!r}; leave it out")
    if BACKGROUND in owners:
        raise InputError(f"the vocabulary has a class {BACKGROUND!r} already, so background words have no name")


def _folded(name: str) -> str:
    return clean_class_name(name).strip().casefold()
