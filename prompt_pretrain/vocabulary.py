"""Vocabularies: class names by data set name, from a text or JSON file, or typed as a comma list.

Names are kept as their data set spells them; prompts clean them (:func:`clean_class_name`). Names that a text encoder
cannot tell apart are ties (:func:`find_ties`): equal features, the first one wins. Some published sets contain such.
"""

import difflib
import itertools
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from open_clip.tokenizer import get_clean_fn

from prompt_pretrain.errors import InputError
from prompt_pretrain.metadata import read_columns
from prompt_pretrain.prompt_tokens import clean_class_name
from prompt_pretrain.registered_vocabularies import ALIASES, READERS, canonical_name, fold

__all__ = [
    "Vocabulary",
    "clean_class_name",
    "find_ties",
    "imagenet21k_names",
    "load_vocabulary",
    "registered_names",
]
_log = logging.getLogger(__name__)
_as_tokenized = get_clean_fn("lower")  # what open_clip's tokenizer does to a text before it splits it
_WNID_LINE = re.compile(r"n\d{8}\s+\S")


@dataclass(frozen=True)
class Vocabulary:
    """N class names in label order.

    Attributes:
        name: registered name, file name or ``custom``.
        class_names: as the data set spells them.
        splits: split name -> indices of its classes (``base``/``novel`` or ``seen``/``unseen``, …); may be empty.
        ids: the data set's own ids of the classes (category ids, WordNet ids); empty if it has none.
        synonyms: per class all its names; empty if not known.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ids: tuple[int | str, ...] = ()
    synonyms: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.class_names)

    def subset(self, split: str) -> "Vocabulary":
        """The classes of one split, renumbered from 0."""
        if split not in self.splits:
            known = ", ".join(self.splits) or "no splits"
            raise InputError(f"vocabulary {self.name} has no split {split!r}; it has {known}")
        rows = self.splits[split]
        return Vocabulary(
            f"{self.name}:{split}",
            tuple(self.class_names[row] for row in rows),
            ids=tuple(self.ids[row] for row in rows) if self.ids else (),
            synonyms=tuple(self.synonyms[row] for row in rows) if self.synonyms else (),
        )


def load_vocabulary(spec: str | os.PathLike) -> Vocabulary:
    """The vocabulary that ``spec`` describes.

    Args:
        spec: one of
            * a registered name (:func:`registered_names`), with ``:split`` for a part of it (``lvis_v1:novel``);
            * a ``.txt`` file, UTF-8, one name per line; empty lines and lines that start with ``#`` are skipped, and
              where every line starts with a WordNet id, as in ``classnames.txt``, the ids are taken off;
            * a ``.json`` file: a list of names, or COCO or LVIS style categories (sorted by their ids);
            * a comma list, ``"red car,traffic cone"``; a single name is typed with a comma behind it.
            In text files and comma lists ``car|automobile`` is a class "car" with a further name
            (:class:`~prompt_pretrain.class_groups.ClassGroups` looks for all of them).
    Raises:
        InputError: an unknown name, a missing or damaged file, no or empty names.
    """
    spec = os.fspath(spec).strip()
    suffix = Path(spec).suffix.lower()
    if suffix in (".txt", ".json") or (os.sep in spec and "," not in spec) or os.path.isfile(spec):
        return _from_file(Path(spec))
    if "," in spec:
        return _from_texts("custom", [part.strip() for part in spec.removesuffix(",").split(",")], "the comma list")
    name, _, split = spec.partition(":")
    canonical = canonical_name(name)
    if canonical is None:
        raise InputError(_unknown(spec, name))
    vocabulary = _registered(canonical)
    return vocabulary.subset(split.strip()) if split else vocabulary


def registered_names() -> tuple[str, ...]:
    """The names that :func:`load_vocabulary` knows, without their aliases."""
    return tuple(READERS)


def find_ties(class_names: Sequence[str]) -> dict[str, list[int]]:
    """Groups of classes that no prompt tells apart: name as the tokenizer sees it -> two or more ascending indices.

    Names are equal when they agree after cleaning, repair of unicode, un-escaping, collapsing of white space and
    lower-casing.
    """
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(class_names):
        groups.setdefault(_as_tokenized(clean_class_name(name)), []).append(index)
    return {name: ids for name, ids in groups.items() if len(ids) > 1}


def imagenet21k_names() -> dict[str, str]:
    """WordNet id -> name of all 21,841 classes of ImageNet-21K."""
    table = read_columns("imagenet21k_classes.json.gz")
    return dict(zip(table["wnid"], table["name"], strict=True))


@lru_cache(maxsize=32)
def _registered(name: str) -> Vocabulary:
    return Vocabulary(name, **READERS[name]())


def _from_file(path: Path) -> Vocabulary:
    if not path.is_file():
        raise InputError(f"no vocabulary file {path}; give an existing .txt or .json file, or a registered name")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    if path.suffix.lower() == ".json":
        return _from_json(path, text)
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and all(map(_WNID_LINE.match, lines)):
        pairs = [line.split(maxsplit=1) for line in lines]
        return _custom(path.stem, [name for _, name in pairs], str(path), ids=tuple(wnid for wnid, _ in pairs))
    return _from_texts(path.stem, lines, str(path))


def _from_texts(name: str, texts: Sequence[str], source: str) -> Vocabulary:
    """Classes as people type them, some of them maybe with synonyms behind ``|``."""
    if not any("|" in text for text in texts):
        return _custom(name, texts, source)
    synonyms = tuple(tuple(part.strip() for part in text.split("|")) for text in texts)
    for text, names in zip(texts, synonyms, strict=True):
        if "" in names:
            raise InputError(f"{source}: {text!r} has an empty name; write 'car|automobile'")
    return _custom(name, [names[0] for names in synonyms], source, synonyms=synonyms)


def _from_json(path: Path, text: str) -> Vocabulary:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); mend it or give a text file") from error
    entries = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise InputError(f"{path} holds neither a list of names nor a list under 'categories'")
    if all(isinstance(entry, str) for entry in entries):
        return _custom(path.stem, entries, str(path))
    return _from_categories(path, entries)


def _from_categories(path: Path, entries: list[Any]) -> Vocabulary:
    for number, entry in enumerate(entries):
        usable = isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("name"), str)
        if not usable:
            raise InputError(f"category {number} of {path} lacks an integer 'id' or a 'name': {str(entry)[:80]}")
    entries = sorted(entries, key=lambda entry: entry["id"])
    ids = tuple(entry["id"] for entry in entries)
    repeated = next((a for a, b in itertools.pairwise(ids) if a == b), None)
    if repeated is not None:
        raise InputError(f"{path} gives the category id {repeated} twice; ids must differ")
    synonyms: tuple[tuple[str, ...], ...] = ()
    if all(isinstance(entry.get("synonyms"), list) and entry["synonyms"] for entry in entries):
        synonyms = tuple(tuple(map(str, entry["synonyms"])) for entry in entries)
    return _custom(path.stem, [entry["name"] for entry in entries], str(path), ids=ids, synonyms=synonyms)


def _custom(
    name: str,
    class_names: Sequence[str],
    source: str,
    *,
    ids: tuple[int | str, ...] = (),
    synonyms: tuple[tuple[str, ...], ...] = (),
) -> Vocabulary:
    if not class_names:
        raise InputError(f"{source} holds no class names; give one per line")
    for number, class_name in enumerate(class_names, 1):
        if not clean_class_name(class_name).strip():
            raise InputError(f"class {number} of {len(class_names)} in {source} has an empty name ({class_name!r})")
    for tied, members in find_ties(class_names).items():
        _log.warning("%s names %r %d times: equal features, the first one always wins", source, tied, len(members))
    return Vocabulary(name, tuple(class_names), ids=ids, synonyms=synonyms)


def _unknown(spec: str, name: str) -> str:
    if not spec:
        return "no vocabulary given; name a data set, a .txt or .json file, or class names separated by commas"
    by_fold = {fold(known): known for known in [*ALIASES, *READERS]}
    near = [by_fold[key] for key in difflib.get_close_matches(fold(name), by_fold, 3, 0.5)]
    nearest = f"nearest names: {', '.join(near)}" if near else f"known names: {', '.join(READERS)}"
    return f"unknown vocabulary {spec!r}; {nearest} (a file ends in .txt or .json; a single class name in a comma)"
