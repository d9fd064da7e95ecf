"""Labelled images as the rest of the suite sees them: paths and labels, compact enough for eleven million of them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

ARCHIVE_MARK = ".tar::"  # in a path, between an archive's stem and a member's name


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One labelled image: a file, or a member of an archive as ``ARCHIVE.tar::MEMBER``."""

    path: str
    label: int


class ItemList(Sequence[ImageItem]):
    """An immutable sequence of :class:`ImageItem` held in three arrays.

    Eleven million items take about 0.4 GB, against 2.5 GB as a tuple of objects, and worker processes share the
    memory instead of copying it page by page as reference counts change.

    Args:
        prefixes: what comes before a file name: ``/data/train/n01/`` or ``/data/train/n01.tar::``.
        prefix_ids: (n,) which prefix an item has.
        names: (n,) bytes array (dtype ``S``), file names in the file system's encoding.
        labels: (n,) class of each item.
    """

    def __init__(self, prefixes: Sequence[str], prefix_ids: np.ndarray, names: np.ndarray, labels: np.ndarray) -> None:
        self.prefixes = tuple(prefixes)
        self.prefix_ids = np.asarray(prefix_ids, dtype=np.int32)
        self.names = names
        self.labels = np.asarray(labels, dtype=np.int64)
        if not len(self.prefix_ids) == len(self.names) == len(self.labels):
            raise ValueError("prefix_ids, names and labels differ in length")

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> ImageItem: ...
    @overload
    def __getitem__(self, index: slice) -> "ItemList": ...
    def __getitem__(self, index: int | slice) -> "ImageItem | ItemList":
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        name = os.fsdecode(bytes(self.names[index]))
        return ImageItem(self.prefixes[self.prefix_ids[index]] + name, int(self.labels[index]))

    def __iter__(self) -> Iterator[ImageItem]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"ItemList({len(self)} images in {len(self.prefixes)} folders)"

    def select(self, indices: Iterable[int] | np.ndarray, labels: np.ndarray | None = None) -> "ItemList":
        """The items at ``indices``, in that order, with other ``labels`` if given."""
        rows = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
        chosen = self.labels[rows] if labels is None else labels
        return ItemList(self.prefixes, self.prefix_ids[rows], self.names[rows], chosen)


@dataclass(frozen=True)
class ClassificationData:
    """A classification data set: class names in label order and its lists of images.

    Attributes:
        name: the registered name, e.g. ``ImageNet21K``.
        root: folder of this data set.
        class_names: one per label, as published (underscores kept); equal names are allowed and tie.
        train: images to train on, after few-shot sampling.
        val: the data set's own validation images; for the ImageNet sets the same list as ``test``.
        test: images to report accuracy on.
        class_counts: training images per class in the full set, whatever was sampled from it; empty if only the test
            images were asked for.
        held_out: images of the training set kept out of ``train``, for choosing a checkpoint without the test set.
        folders: folder name (WordNet id for ImageNet) of each class, or empty.
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    train: Sequence[ImageItem]
    val: Sequence[ImageItem]
    test: Sequence[ImageItem]
    class_counts: tuple[int, ...]
    held_out: Sequence[ImageItem] = ()
    folders: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def labels_of(items: Sequence[ImageItem]) -> np.ndarray:
    """(n,) int64 labels of ``items``."""
    if isinstance(items, ItemList):
        return items.labels
    return np.fromiter((item.label for item in items), dtype=np.int64, count=len(items))


def select_items(
    items: Sequence[ImageItem], indices: Iterable[int] | np.ndarray, labels: np.ndarray | None = None
) -> Sequence[ImageItem]:
    """The items at ``indices``, in that order; ``labels`` (one per index) replaces theirs."""
    if isinstance(items, ItemList):
        return items.select(indices, labels)
    chosen = [items[int(i)] for i in indices]
    if labels is not None:
        chosen = [ImageItem(item.path, int(label)) for item, label in zip(chosen, labels, strict=True)]
    return tuple(chosen)


def group_by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Label -> ascending positions with that label, labels ascending."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    groups = np.split(order, starts[1:]) if len(order) else []
    return {int(labels[group[0]]): group for group in groups}


def find_items(items: Sequence[ImageItem], paths: Sequence[str]) -> np.ndarray:
    """(len(paths),) int64 positions in ``items`` of the items with these paths, -1 for those that are not there."""
    if isinstance(items, ItemList) and _is_grouped_by_folder(items):
        return _find_grouped(items, paths)
    positions = {item.path: position for position, item in enumerate(items)}
    return np.array([positions.get(path, -1) for path in paths], dtype=np.int64)


def _is_grouped_by_folder(items: ItemList) -> bool:
    return bool((np.diff(items.prefix_ids) >= 0).all())


def _find_grouped(items: ItemList, paths: Sequence[str]) -> np.ndarray:
    """:func:`find_items` for a full listing: a binary search per path instead of a dictionary of eleven million."""
    starts = np.searchsorted(items.prefix_ids, np.arange(len(items.prefixes) + 1))
    by_prefix: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        by_prefix.setdefault(_prefix_of(path), []).append(number)
    found = np.full(len(paths), -1, dtype=np.int64)
    ids = {prefix: number for number, prefix in enumerate(items.prefixes)}
    for prefix in by_prefix.keys() & ids.keys():
        numbers = by_prefix[prefix]
        start, stop = starts[ids[prefix]], starts[ids[prefix] + 1]
        if start == stop:
            continue
        names = items.names[start:stop]
        wanted = np.array([os.fsencode(paths[number][len(prefix) :]) for number in numbers], dtype=np.bytes_)
        order = np.argsort(names)
        places = order[np.minimum(np.searchsorted(names, wanted, sorter=order), len(names) - 1)]
        found[numbers] = np.where(names[places] == wanted, start + places, -1)
    return found


def _prefix_of(path: str) -> str:
    archive, mark, _ = path.partition(ARCHIVE_MARK)
    return archive + mark if mark else path[: path.rfind(os.sep) + 1]
