"""Classes of an LVIS-style annotation file with their descriptions, base or novel, and the folders of their images.

Descriptions come with the data: from the ``def`` field of LVIS' own json, or from a file of the user.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_pretrain.classification.class_names import read_class_names
from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.entries import make_entry, split_entry

# Names of LVIS v1 that the published class list corrects.
_CORRECTED = {"speaker_(stero_equipment)": "speaker_(stereo_equipment)"}
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_LONGEST_FOLDER = 120  # bytes; file systems take 255, and some files carry the folder's name
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")


@dataclass(frozen=True)
class RegionalClass:
    """One class.

    Attributes:
        id: category id of the annotations.
        name: as the annotations spell it. folder: unique, safe on every file system.
        description: what stands behind "which is"; "" if there is none.
        base: whether its boxes may be trained on.
    """

    id: int
    name: str
    folder: str
    description: str
    base: bool

    @property
    def entry(self) -> str:
        """``<name>_which_is_<description>``."""
        return make_entry(_CORRECTED.get(self.name, self.name), self.description)

    @property
    def line(self) -> str:
        """Line of ``classnames.txt``."""
        return f"{self.folder} {self.entry}"


def read_json(path: str | os.PathLike, lists: Sequence[str]) -> dict[str, Any]:
    """A json object whose entries ``lists`` are lists of objects with an ``id``.

    Raises:
        InputError: no such file, or one of another form.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} not found; give an annotation file in the format of LVIS v1") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); get it again") from error
    for key in lists:
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise InputError(f"{path} has no list {key!r}; expected an annotation file in the format of LVIS v1")
        wrong = next((i for i, row in enumerate(rows) if not isinstance(row, dict) or "id" not in row), None)
        if wrong is not None:
            raise InputError(f"{path}: entry {wrong} of {key!r} has no 'id'; expected the format of LVIS v1")
    return content


def regional_classes(
    categories: Sequence[Mapping[str, Any]], source: str, descriptions: Mapping[str, str] | None = None
) -> tuple[RegionalClass, ...]:
    """The classes of ``categories`` in the order of their ids.

    Base are those of frequency "c" or "f" (or ``split`` "base"); without either, all.

    Args:
        source: file that they come from, for errors.
        descriptions: of :func:`read_descriptions`; None takes the categories' own ``def``.
    Raises:
        InputError: a category without a name, repeated ids or names, a class that ``descriptions`` lack.
    """
    rows = sorted(categories, key=lambda row: row["id"])
    names = [str(row.get("name") or "") for row in rows]
    for row, name in zip(rows, names, strict=True):
        if not name.replace("_", " ").strip():
            raise InputError(f"{source}: category {row['id']} has an empty name; give every class a name")
    if len({row["id"] for row in rows}) < len(rows) or len(set(names)) < len(names):
        raise InputError(f"{source}: category ids or names repeat; they must differ")
    if descriptions is None:
        texts = [str(row.get("def") or "") for row in rows]
    else:
        texts = [_described(name, descriptions) for name in names]
    folders = safe_folders(names)
    return tuple(
        RegionalClass(row["id"], name, folder, " ".join(text.split()), _is_base(row))
        for row, name, folder, text in zip(rows, names, folders, texts, strict=True)
    )


def read_descriptions(path: str | os.PathLike) -> dict[str, str]:
    """Descriptions by class name or folder, blanks in both as underscores.

    A ``.json`` file holds ``{name: description}``, a list of ``{"name": …, "description" or "def": …}``, or such a list
    under ``categories``. A text file holds the published lines ``<folder> <name>_which_is_<description>``.

    Raises:
        InputError: no such file, another form, or a line without a description.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        found: dict[str, str] = {}
        for folder, entry in read_class_names(path).items():
            name, description = split_entry(entry)
            if not description:
                raise InputError(f"{path}: {folder} has no description; expected '<folder> <name>_which_is_<text>'")
            found[folder] = found[name] = description
        return found
    expected = 'expected {"class name": "description", …} or a list of objects with "name" and "description"'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} not found; give a file of class descriptions") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); {expected}") from error
    rows = content.get("categories", content) if isinstance(content, dict) else content
    if isinstance(rows, list):
        try:
            rows = {row["name"]: row["description"] if "description" in row else row["def"] for row in rows}
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: an entry lacks {error}; {expected}") from error
    if not isinstance(rows, dict) or not all(isinstance(text, str) and text.strip() for text in rows.values()):
        raise InputError(f"{path} holds something else than texts; {expected}")
    return {"_".join(name.split()): "_".join(text.split()) for name, text in rows.items()}


def safe_folders(names: Sequence[str]) -> list[str]:
    """One folder name per class: the name with underscores for blanks, changed where a file system could object.

    The two names of LVIS that the published list corrects are corrected too. Names that would fall together, also on
    systems that ignore case, get a number.
    """
    folders: list[str] = []
    taken: set[str] = set()
    for name in names:
        folder = _UNSAFE.sub("-", "_".join(_CORRECTED.get(name, name).split()))
        if folder.startswith(".") or _RESERVED.match(folder):
            folder = f"_{folder}"
        folder = folder.rstrip(". ") or "_"
        if len(folder.encode()) > _LONGEST_FOLDER:
            digest = hashlib.sha256(folder.encode()).hexdigest()[:8]
            folder = folder.encode()[: _LONGEST_FOLDER - 9].decode(errors="ignore") + f"-{digest}"
        unique, number = folder, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{folder}-{number}"
        taken.add(unique.casefold())
        folders.append(unique)
    return folders


def _described(name: str, descriptions: Mapping[str, str]) -> str:
    key = "_".join(name.split())
    found = descriptions.get(key) or descriptions.get(_CORRECTED.get(key, key))
    if not found:
        raise InputError(f"class {name!r} has no description in the file of descriptions; add it")
    return found.replace("_", " ")


def _is_base(category: Mapping[str, Any]) -> bool:
    if "frequency" in category:
        if category["frequency"] not in ("r", "c", "f"):
            raise InputError(f"category {category['id']} has frequency {category['frequency']!r}; expected r, c or f")
        return category["frequency"] != "r"
    return category.get("split", "base") != "novel"
