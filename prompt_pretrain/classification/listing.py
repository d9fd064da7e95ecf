"""Listing class folders: one sub-folder or one ``.tar`` archive per class, images sorted by name.

ImageNet-21K has eleven million files, so a listing is cached, per class folder with its modification time: later runs
ask the file system for one time per class and list again only what changed.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_pretrain.classification.cache_folder import cache_file, load_arrays, save_arrays
from prompt_pretrain.classification.file_names import is_image_name
from prompt_pretrain.classification.items import ItemList
from prompt_pretrain.classification.tar_archives import open_index
from prompt_pretrain.errors import InputError

logger = logging.getLogger(__name__)

RESERVED = frozenset({"split_fewshot"})  # our own folder beside class folders
# A folder that changed this short a time before it was listed may change again without a visible sign.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class ClassFolder:
    """The images of one class in one split.

    Attributes:
        name: of the folder, or of the archive without ``.tar``.
        prefix: in front of a file name it gives the path of an item.
        names: (n,) bytes array, sorted.
    """

    name: str
    prefix: str
    names: np.ndarray


def list_class_folders(folder: str | os.PathLike, expected: str) -> list[ClassFolder]:
    """The class folders (or archives) in ``folder``, sorted by name, each with its images sorted by name.

    Hidden entries, loose files and files that are no images by name are left out.

    Args:
        expected: what should be there, for the error.

    Raises:
        InputError: ``folder`` is missing or holds no class, a class is unreadable or without images, or both a folder
            and an archive of one name exist.
    """
    folder = os.path.abspath(folder)
    sources = _class_sources(folder, expected)
    if not sources:
        raise InputError(f"{folder} holds no class folders; {expected}")
    cache = cache_file("listings", folder, ".npz")
    known = _load(cache)
    listed = {name: _list_or_reuse(path, known.get(name)) for name, path in sources.items()}
    if len(listed) != len(known) or any(listed[name] is not known.get(name) for name in listed):
        _save(cache, listed)
    empty = [sources[name] for name, entry in listed.items() if not len(entry.names)]
    if empty:
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise InputError(f"no images for class {empty[0]}{others}; add some or remove the empty class")
    return [
        ClassFolder(name, path + ("::" if path.endswith(".tar") else os.sep), listed[name].names)
        for name, path in sources.items()
    ]


def class_names_in(folder: str | os.PathLike) -> list[str]:
    """Sorted names of the classes that have a folder or an archive in ``folder``; empty if it does not exist."""
    try:
        return list(_class_sources(os.path.abspath(folder), ""))
    except InputError:
        return []


def as_items(classes: Sequence[ClassFolder], labels: Mapping[str, int]) -> ItemList:
    """All images of ``classes``, class by class, labelled by folder name."""
    counts = [len(entry.names) for entry in classes]
    return ItemList(
        [entry.prefix for entry in classes],
        np.repeat(np.arange(len(classes), dtype=np.int32), counts),
        np.concatenate([entry.names for entry in classes]),
        np.repeat(np.array([labels[entry.name] for entry in classes], dtype=np.int64), counts),
    )


@dataclass(frozen=True)
class _Listed:
    stamp: tuple[int, int]  # size and modification time of the folder or archive; (-1, -1) is never trusted
    names: np.ndarray


def _class_sources(folder: str, expected: str) -> dict[str, str]:
    """Class name -> path of its folder or archive, sorted by name."""
    sources: dict[str, str] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in RESERVED:
                    continue
                archive = entry.name.endswith(".tar")
                if _is_dir(entry) == archive:
                    continue
                name = entry.name.removesuffix(".tar")
                if name in sources:
                    raise InputError(f"class {name} in {folder} is both a folder and an archive; remove one of them")
                sources[name] = entry.path
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; {expected}") from error
    return dict(sorted(sources.items()))


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        raise InputError(f"{entry.path}: {error.strerror}; mend or remove it") from error


def _list_or_reuse(path: str, known: _Listed | None) -> _Listed:
    try:
        status = os.stat(path)
        stamp = (status.st_size, status.st_mtime_ns)
        if known is not None and known.stamp == stamp:
            return known
        if path.endswith(".tar"):
            return _Listed(stamp, open_index(path).names)
        settled = status.st_mtime_ns < time.time_ns() - _SETTLED_NS
        return _Listed(stamp if settled else (-1, -1), _image_names(path))
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror}; mend or remove this class folder") from error


def _image_names(folder: str) -> np.ndarray:
    names = []
    broken = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_image_name(entry.name):
                continue
            try:
                if entry.is_file():
                    names.append(os.fsencode(entry.name))
                elif entry.is_symlink() and not entry.is_dir():
                    broken += 1
            except OSError:  # a link that leads to itself
                broken += 1
    if broken:
        logger.warning("ignored %d links in %s that lead nowhere", broken, folder)
    return np.array(sorted(names), dtype=np.bytes_)


def _load(cache: Path) -> dict[str, _Listed]:
    arrays = load_arrays(cache, ("folders", "stamps", "counts", "names"))
    if arrays is None:
        return {}
    folders, stamps, counts, names = arrays["folders"], arrays["stamps"], arrays["counts"], arrays["names"]
    if not len(folders) == len(stamps) == len(counts) or counts.sum() != len(names):
        return {}
    ends = np.cumsum(counts).tolist()
    return {
        os.fsdecode(bytes(folder)): _Listed((size, time_ns), names[end - count : end])
        for folder, (size, time_ns), count, end in zip(folders, stamps.tolist(), counts.tolist(), ends, strict=True)
    }


def _save(cache: Path, listed: Mapping[str, _Listed]) -> None:
    arrays = {
        "folders": np.array([os.fsencode(name) for name in listed], dtype=np.bytes_),
        "stamps": np.array([entry.stamp for entry in listed.values()], dtype=np.int64).reshape(-1, 2),
        "counts": np.array([len(entry.names) for entry in listed.values()], dtype=np.int64),
        "names": np.concatenate([entry.names for entry in listed.values()]),
    }
    save_arrays(cache, arrays)
