"""Files that give class folders their names, and what equal names cost."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import find_ties


def read_class_names(path: str | os.PathLike) -> dict[str, str]:
    """Folder name -> class name, in the order of the file.

    Text files hold ``<folder> <class name with blanks>`` per line (as ``classnames.txt`` of ImageNet). JSON files
    hold ``{folder: name}``, ``[[folder, name], …]`` or ``{"0": [folder, name], …}``.

    Raises:
        InputError: the file is missing, has another form, or names a folder twice or not at all.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: {reason}; expected lines of '<folder> <class name>'") from error
    pairs = _json_pairs(path, text) if path.suffix.lower() == ".json" else _text_pairs(path, text)
    names: dict[str, str] = {}
    for folder, name in pairs:
        if names.setdefault(folder, name) != name:
            raise InputError(f"{path} names folder {folder} twice: {names[folder]!r} and {name!r}; keep one")
    if not names:
        raise InputError(f"{path} is empty; expected lines of '<folder> <class name>'")
    return names


def names_of_folders(folders: Sequence[str], names: Mapping[str, str], source: str | os.PathLike) -> tuple[str, ...]:
    """The class name of each folder.

    Raises:
        InputError: folders without a name; ``source`` is the file that should have them.
    """
    missing = [folder for folder in folders if not names.get(folder, "").strip()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} of {len(folders)} class folders have no class name in {source}: {shown}; "
            "add their names or remove the folders"
        )
    return tuple(names[folder] for folder in folders)


def tie_ceiling(class_names: Sequence[str], labels: Sequence[int] | np.ndarray) -> float:
    """The highest accuracy, in percent, that any prompt can reach where class names are equal.

    Equal names have equal text features, and among equal logits the first index wins, so images of the later classes
    of each group of equal names are never classified correctly.

    Args:
        labels: (n,) labels of the images.
    """
    hopeless = [label for group in find_ties(class_names).values() for label in sorted(group)[1:]]
    labels = np.asarray(labels)
    if not len(labels):
        return 100.0
    return 100.0 * float(1.0 - np.isin(labels, hopeless).mean())


def _text_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        folder, _, name = line.strip().partition(" ")
        if not folder:
            continue
        if not name.strip():
            raise InputError(
                f"{path} line {number}: {line.strip()[:80]!r} has no class name; expected '<folder> <class name>'"
            )
        pairs.append((folder, name.strip()))
    return pairs


def _json_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    expected = 'expected {"folder": "class name", ...}'
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {expected}") from error
    if isinstance(value, dict) and all(isinstance(entry, list) for entry in value.values()):
        value = list(value.values())
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise InputError(f"{path} holds a {type(value).__name__}; {expected}")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise InputError(f"{path}: unusable entry {str(pair)[:60]}; {expected}")
    return [(folder, name) for folder, name in pairs]
