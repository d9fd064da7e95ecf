"""Split files: which images of a data set are for training, validation and testing, with labels and class names.

The published ones (``split_zhou_<data set>.json``) hold ``{"train": [[path, label, class name], ...], "val": ...,
"test": ...}`` with paths relative to an image folder. What they say about classes wins over every other list; what
contradicts itself is an error, since a class without images would silently shift the labels of all classes behind it.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.classification.items import ItemList
from prompt_pretrain.errors import InputError

SPLITS = ("train", "val", "test")
_EXPECTED = '{"train": [[path, label, class name], ...], "val": [...], "test": [...]}'
_SHOWN = 80  # characters of a bad entry


class SplitRow(NamedTuple):
    """One image: path relative to the image folder, label, class name."""

    path: str
    label: int
    class_name: str


Rows = dict[str, list[SplitRow]]
# What to do about a problem, given its kind and a one-line message.
OnProblem = Callable[[str, str], None]


def fail(kind: str, message: str) -> None:
    """Make the first problem an error."""
    raise InputError(message)


def read_split_file(file: Path, remedy: str, on_problem: OnProblem = fail) -> Rows:
    """The rows of a split file, in its order.

    Args:
        remedy: how to get a good file, for the errors.
        on_problem: told about every entry that cannot be used, which is then left out.

    Raises:
        InputError: the file is missing, no JSON, or not of this form.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); {remedy}") from error
    rows: Rows = {}
    for split in SPLITS:
        entries = content.get(split) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{file} has no list {split!r}; expected {_EXPECTED}; {remedy}")
        rows[split] = []
        for number, entry in enumerate(entries):
            row = _row(entry)
            if isinstance(row, str):
                shown = json.dumps(entry, ensure_ascii=False)[:_SHOWN]
                on_problem("entry", f"{file}: entry {number} of {split!r}, {shown}, {row}; {remedy}")
            else:
                rows[split].append(row)
    return rows


def write_split_file(file: Path, rows: Mapping[str, Sequence[SplitRow]]) -> None:
    """Write a split file, whole or not at all."""
    write_json(file, {split: [list(row) for row in rows[split]] for split in SPLITS})


def class_names_of(rows: Mapping[str, Sequence[SplitRow]], file: Path, on_problem: OnProblem = fail) -> tuple[str, ...]:
    """Class names in label order.

    Problems: a label with several names, labels of ``val`` or ``test`` that ``train`` has not, classes without
    training or test images. Validation images may lack classes.

    Args:
        file: what errors name.

    Raises:
        InputError: there is no training image at all.
    """
    if not rows["train"]:
        raise InputError(f"{file} lists no training images; get the split file again")
    names: dict[int, tuple[str, str]] = {}  # label -> name, and the split that says so
    for split in SPLITS:
        for label, name in sorted({(row.label, row.class_name) for row in rows[split]}):
            known, where = names.setdefault(label, (name, split))
            if known != name:
                on_problem(
                    "class names differ",
                    f"{file}: label {label} is {known!r} in {where!r} but {name!r} in {split!r}; a label must have one "
                    "name in all splits",
                )
    num_classes = max(names) + 1
    for split, missing in (("train", "training"), ("test", "test")):
        have = {row.label for row in rows[split]}
        without = [label for label in range(num_classes) if label not in have] if have else []
        if without:
            name = names.get(without[0], ("?",))[0]
            others = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
            on_problem(
                "class without images",
                f"{file}: class {without[0]} ({name!r}){others} of the {num_classes} classes has no {missing} images; "
                "all splits must have the same classes, labels 0 to N - 1",
            )
    if not rows["test"]:
        on_problem("class without images", f"{file} lists no test images; get the split file again")
    return tuple(names[label][0] if label in names else "" for label in range(num_classes))


def missing_images(rows: Iterable[SplitRow], folder: Path) -> list[str]:
    """Paths of the images that are not below ``folder``; every folder is listed once, no image is opened."""
    listed: dict[str, set[str]] = {}
    missing = []
    for row in rows:
        parent, name = os.path.split(row.path)
        if parent not in listed:
            try:
                listed[parent] = set(os.listdir(folder / parent))
            except OSError:
                listed[parent] = set()
        if name not in listed[parent]:
            missing.append(row.path)
    return missing


def as_item_list(rows: Sequence[SplitRow], folder: Path) -> ItemList:
    """The images of ``rows``, in their order."""
    parents: dict[str, int] = {}
    names, prefix_ids = [], []
    for row in rows:
        parent, name = os.path.split(row.path)
        prefix_ids.append(parents.setdefault(parent, len(parents)))
        names.append(os.fsencode(name))
    return ItemList(
        [os.path.join(folder, parent, "") for parent in parents],
        np.array(prefix_ids, dtype=np.int32),
        np.array(names, dtype=np.bytes_),
        np.array([row.label for row in rows], dtype=np.int64),
    )


def _row(entry: Any) -> SplitRow | str:
    """The entry as a row, or what is wrong with it."""
    if not isinstance(entry, list) or len(entry) != 3:
        return "is not [path, label, class name]"
    path, label, name = entry
    if isinstance(label, str) and label.isdecimal():
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        return "has no label, a number from 0"
    if not isinstance(name, str) or not name.strip():
        return "has no class name"
    if not isinstance(path, str) or not os.path.basename(path):
        return "has no image path"
    if os.path.isabs(path) or ".." in path.split("/"):
        return "has a path that leaves the image folder"
    return SplitRow(path, label, name)
