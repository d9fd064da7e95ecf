"""The few-shot subset: the published sampling rule, and the split saved as JSON so that a run can be repeated.

The published code sampled on every process, seeded on the first one only, from an unsorted listing, and kept the
result as a pickle. Here the subset depends on the seed and the sorted listing, one process draws it, and the file
carries a hash of its content.
"""

import errno
import hashlib
import json
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.classification.cache_folder import cache_folder
from prompt_pretrain.classification.items import (
    ImageItem,
    find_items,
    group_by_label,
    labels_of,
    select_items,
)
from prompt_pretrain.errors import InputError

logger = logging.getLogger(__name__)

MAX_VAL_SHOTS = 4
_FORMAT = "few-shot split 1"


def few_shot_indices(labels: Sequence[int] | np.ndarray, shots: int, rng: random.Random) -> list[int]:
    """Positions of ``shots`` items per class, drawn without replacement.

    Classes are visited in the order in which they first appear; a class with fewer than ``shots`` items keeps all of
    them, in their order, and draws no random number.

    Args:
        labels: class of each item.
        rng: see :func:`sample_few_shot`.
    """
    chosen: list[int] = []
    for group in sorted(group_by_label(np.asarray(labels, dtype=np.int64)).values(), key=lambda group: int(group[0])):
        members = group.tolist()
        chosen += rng.sample(members, shots) if len(members) >= shots else members
    return chosen


def sample_few_shot(
    train_labels: Sequence[int] | np.ndarray, val_labels: Sequence[int] | np.ndarray | None, shots: int, seed: int
) -> tuple[list[int], list[int] | None]:
    """Positions of ``shots`` training and ``min(shots, 4)`` validation items per class, by the published rule.

    One generator, seeded with ``seed``, serves the training items first. ``val_labels`` None gives None.
    """
    rng = random.Random(seed)
    train = few_shot_indices(train_labels, shots, rng)
    if val_labels is None:
        return train, None
    return train, few_shot_indices(val_labels, min(shots, MAX_VAL_SHOTS), rng)


def saved_few_shot_split(
    folder: Path, train: Sequence[ImageItem], val: Sequence[ImageItem] | None, shots: int, seed: int
) -> tuple[Sequence[ImageItem], Sequence[ImageItem] | None]:
    """The few-shot subsets of ``train`` and ``val`` (None stays None), read from or saved to a file.

    The file is ``<folder>/shot_<shots>-seed_<seed>.json``, paths in it are relative to the parent of ``folder``.

    Where that folder cannot be written to, the file goes to the user's cache folder.

    Raises:
        InputError: the file was changed by hand, is damaged, or was made from other images.
    """
    name = f"shot_{shots}-seed_{seed}.json"
    root = folder.parent
    for file in (folder / name, _fallback(folder) / name):
        if file.exists():
            return _read(file, root, train, val, shots, seed)
    rows, val_rows = sample_few_shot(labels_of(train), None if val is None else labels_of(val), shots, seed)
    chosen = select_items(train, rows)
    chosen_val = None if val is None or val_rows is None else select_items(val, val_rows)
    content: dict[str, Any] = {"format": _FORMAT, "num_shots": shots, "seed": seed, "train": _records(chosen, root)}
    if chosen_val is not None:
        content["val"] = _records(chosen_val, root)
    content["sha256"] = _content_hash(content)
    try:
        write_json(folder / name, content)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        logger.info("%s is not writable; the few-shot split goes to %s", folder, _fallback(folder) / name)
        write_json(_fallback(folder) / name, content)
    return chosen, chosen_val


def _fallback(folder: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
    return cache_folder("few_shot") / digest[:32]


def _records(items: Sequence[ImageItem], root: Path) -> list[list[Any]]:
    return [[os.path.relpath(item.path, root), item.label] for item in items]


def _content_hash(content: dict[str, Any]) -> str:
    text = json.dumps({key: content[key] for key in sorted(content) if key != "sha256"}, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(
    file: Path,
    root: Path,
    train: Sequence[ImageItem],
    val: Sequence[ImageItem] | None,
    shots: int,
    seed: int,
) -> tuple[Sequence[ImageItem], Sequence[ImageItem] | None]:
    remedy = "remove it to draw a new subset"
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{file} is not a {_FORMAT!r} file; {remedy}")
    if content.get("sha256") != _content_hash(content):
        raise InputError(f"{file} was changed since it was saved (its hash differs); {remedy}")
    if (content.get("num_shots"), content.get("seed")) != (shots, seed):
        found = f"{content.get('num_shots')} shots, seed {content.get('seed')}"
        raise InputError(f"{file} holds the subset for {found}, expected {shots} shots, seed {seed}; {remedy}")
    if (val is None) != ("val" not in content):
        raise InputError(f"{file} and the data set disagree on whether validation images are sampled; {remedy}")
    chosen = _match(content.get("train"), train, root, file)
    return chosen, None if val is None else _match(content["val"], val, root, file)


def _match(records: Any, items: Sequence[ImageItem], root: Path, file: Path) -> Sequence[ImageItem]:
    """The items that ``records`` name; every record must still be an item with that label."""
    for record in records if isinstance(records, list) else [records]:
        pair = isinstance(record, list) and len(record) == 2
        if not pair or not isinstance(record[0], str) or type(record[1]) is not int or not 0 <= record[1] < 1 << 31:
            raise InputError(
                f"{file} holds {str(record)[:60]!r}, expected [path, label]; remove it to draw a new subset"
            )
    found = find_items(items, [os.path.join(root, path) for path, _ in records])
    labels = np.array([label for _, label in records], dtype=np.int64)
    wrong = (found < 0) | (labels_of(items)[found] != labels)
    if wrong.any():
        path, label = records[int(np.argmax(wrong))]
        raise InputError(
            f"{file} names {path} with label {label}, which {root} does not hold now: the split was made from other "
            "images or classes; remove it to draw a new subset"
        )
    return select_items(items, found)
