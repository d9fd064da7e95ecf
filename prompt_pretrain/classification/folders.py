"""Any data set of one folder (or ``.tar`` archive) per class: with split sub-folders or flat, with or without names."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prompt_pretrain.classification.class_names import names_of_folders, read_class_names
from prompt_pretrain.classification.items import ClassificationData, ItemList
from prompt_pretrain.classification.listing import ClassFolder, as_items, class_names_in, list_class_folders
from prompt_pretrain.errors import InputError

logger = logging.getLogger(__name__)

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_EXPECTED = "expected one folder or .tar archive of images per class, or such folders below train, val and test"


def read_image_folder(
    root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
) -> ClassificationData:
    """Read ``root/{train,val,test}/<class>/*``, or ``root/<class>/*`` where there are no splits.

    Without ``test`` the validation images are the test images and the other way round; without ``train`` (or in a flat
    set) the test images are the training images too.

    Args:
        names_file: for :func:`~prompt_pretrain.classification.class_names.read_class_names`. Default:
            ``classnames.txt`` or ``classnames.json`` in ``root`` if there, else folders are named by themselves.
        test_only: see :func:`read_splits`.

    Raises:
        InputError: anything missing, empty, unreadable or without a name.
    """
    root = Path(root).absolute()
    splits = _split_folders(root)
    train_folder = splits.get("train")
    test_folder = splits.get("test") or splits.get("val") or train_folder or root
    val_folder = splits.get("val") or test_folder
    if train_folder is None:
        if not test_only:
            logger.info("%s has no train folder: its images are for training and for testing", root)
        train_folder = test_folder
    source = names_file or next((root / n for n in ("classnames.txt", "classnames.json") if (root / n).exists()), None)
    names = None if source is None else read_class_names(source)
    folders, (train, val, test) = read_splits(
        train_folder, val_folder, test_folder, expected=_EXPECTED, test_only=test_only
    )
    class_names = tuple(folders) if names is None else names_of_folders(folders, names, source or "")
    return classification_data("ImageFolder", root, folders, class_names, train, val, test)


def read_splits(
    train: Path, val: Path, test: Path, *, expected: str, test_only: bool = False
) -> tuple[list[str], tuple[ItemList, ItemList, ItemList]]:
    """List three split folders, which may be the same; labels are ranks among the sorted folders of ``train``.

    Args:
        test_only: leave the training list empty; of ``train``, which may then be missing, only the class folders count.

    Returns:
        The class folder names in label order, and the items of the three splits. Equal folders give the same object.

    Raises:
        InputError: a folder is missing or empty, or a class of ``val`` or ``test`` does not occur in ``train``.
    """
    listed: dict[Path, list[ClassFolder]] = {}
    for folder in (val, test) if test_only else (train, val, test):
        if folder not in listed:
            listed[folder] = list_class_folders(folder, expected)
    folders = class_names_in(train) if test_only else [entry.name for entry in listed[train]]
    if not folders:
        folders, train = [entry.name for entry in listed[test]], test
    labels = {name: label for label, name in enumerate(folders)}
    items = {folder: _labelled(entries, labels, folder, train) for folder, entries in listed.items()}
    return folders, (items[test][:0] if test_only else items[train], items[val], items[test])


def classification_data(
    name: str,
    root: Path,
    folders: Sequence[str],
    class_names: Sequence[str],
    train: ItemList,
    val: ItemList,
    test: ItemList,
) -> ClassificationData:
    """The data set with its full training list (or an empty one) and the number of images per class in it."""
    counts = np.bincount(train.labels, minlength=len(class_names)) if len(train) else np.zeros(0, dtype=np.int64)
    return ClassificationData(
        name=name,
        root=str(root),
        class_names=tuple(class_names),
        train=train,
        val=val,
        test=test,
        class_counts=tuple(counts.tolist()),
        folders=tuple(folders),
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Split name -> folder. A split holds class folders or archives; a folder of images is a class called so."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; {_EXPECTED}")
    # Sorted backwards, so that "val" is taken where "valid" or "validation" is there, too.
    found = [name for name in sorted(_SPLIT_FOLDERS, reverse=True) if class_names_in(root / name)]
    return {_SPLIT_FOLDERS[name]: root / name for name in found}


def _labelled(entries: Sequence[ClassFolder], labels: Mapping[str, int], folder: Path, train: Path) -> ItemList:
    unknown = [entry.name for entry in entries if entry.name not in labels]
    if unknown:
        raise InputError(f"{folder} has class {unknown[0]}, which {train} has not; give both the same classes")
    missing = len(labels) - len(entries)
    if missing:
        logger.warning("%s has images of %d classes, %s of %d", folder, len(entries), train, len(labels))
    return as_items(entries, labels)
