"""Object crops, alone or with retrieved web images, as classification data.

Layout of a folder of crops, which is that of the published training set::

    classnames.txt                    <folder> <name>_which_is_<description>     base classes in label order
    classnames_novel.txt              the same of the novel classes
    images/train/<folder>/*.jpg       crops of base classes
    images/val/<folder>/*.jpg
    images/novel/<folder>/*.jpg       crops of novel classes in validation images: to measure with only

A folder with ``training_set.json`` instead refers to such a folder and adds web images to its training images.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.classification.class_names import read_class_names
from prompt_pretrain.classification.file_names import is_image_name
from prompt_pretrain.classification.items import ClassificationData, ImageItem
from prompt_pretrain.classification.registry import register_dataset
from prompt_pretrain.errors import InputError

BASE_NAMES, NOVEL_NAMES = "classnames.txt", "classnames_novel.txt"
TRAINING_SET = "training_set.json"
_FORMAT = "regional training set 1"


@dataclass(frozen=True)
class TrainingSet:
    """A folder of crops, and web images for some of its classes.

    Attributes:
        crops: the folder of crops.
        web: class folder -> paths of images.
    """

    crops: Path
    web: Mapping[str, Sequence[str]]

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``training_set.json`` into ``folder``, with absolute paths."""
        content = {
            "format": _FORMAT,
            "crops": os.path.abspath(self.crops),
            "web": {name: [os.path.abspath(path) for path in paths] for name, paths in self.web.items()},
        }
        write_json(Path(folder) / TRAINING_SET, content)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TrainingSet":
        """Read ``training_set.json``, or take ``folder`` for crops alone.

        Raises:
            InputError: the file is damaged.
        """
        path = Path(folder) / TRAINING_SET
        if not path.is_file():
            return cls(Path(folder), {})
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']!r}")
            return cls(Path(content["crops"]), {name: list(paths) for name, paths in content["web"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error!r}); write it again with: regional_prompt select") from error


def read_regional_crops(
    root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
) -> ClassificationData:
    """Base classes: crops and web images to train on, validation crops, which are the test images too.

    Labels are ranks in ``classnames.txt``; a class may have no validation crop.

    Raises:
        InputError: nothing there, no usable names, a folder that the names lack, a class without training images.
    """
    chosen = TrainingSet.load(root)
    crops = chosen.crops.absolute()
    names = _names(Path(names_file) if names_file else crops / BASE_NAMES)
    train: list[ImageItem] = []
    counts = [0] * len(names)
    if not test_only:
        train = _read_split(crops / "images" / "train", names)
        train += _web_items(chosen.web, names, Path(root) / TRAINING_SET)
        train.sort(key=lambda item: item.label)  # stable: crops of a class stand before its web images
        counts = np.bincount([item.label for item in train], minlength=len(names)).tolist()
        empty = [folder for folder, count in zip(names, counts, strict=True) if not count]
        if empty:
            raise InputError(
                f"{crops}/images/train has no image of {len(empty)} classes of {BASE_NAMES}, first {empty[0]}; make "
                "the crops again, or take these classes out of the list"
            )
    test = tuple(_read_split(crops / "images" / "val", names))
    return ClassificationData(
        "RegionalCrops",
        str(crops),
        tuple(names.values()),
        tuple(train),
        test,
        test,
        tuple(counts),
        folders=tuple(names),
    )


def read_regional_crops_novel(
    root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
) -> ClassificationData:
    """Validation crops of the novel classes: test images only."""
    crops = TrainingSet.load(root).crops.absolute()
    names = _names(Path(names_file) if names_file else crops / NOVEL_NAMES)
    test = tuple(_read_split(crops / "images" / "novel", names))
    return ClassificationData(
        "RegionalCropsNovel", str(crops), tuple(names.values()), (), test, test, (), folders=tuple(names)
    )


def _names(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise InputError(
            f"{path} not found; make crops with: python tools/regional_prompt.py crops, or give their folder as "
            "DATASET.ROOT"
        )
    return read_class_names(path)


def _read_split(folder: Path, names: Mapping[str, str]) -> list[ImageItem]:
    """Images below ``folder`` by label; class folders may be absent, but not unknown."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not there; make crops with: python tools/regional_prompt.py crops")
    present = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    unknown = [name for name in present if name not in names]
    if unknown:
        raise InputError(
            f"{folder} holds {len(unknown)} folders that the class names lack, first {unknown[0]!r}: training and "
            "validation crops must come from one class list; make both with one command"
        )
    labels = {name: label for label, name in enumerate(names)}
    return [
        ImageItem(os.path.join(folder, name, file), labels[name])
        for name in sorted(present, key=labels.__getitem__)
        for file in _images_in(folder / name)
    ]


def _images_in(folder: Path) -> Iterable[str]:
    return sorted(entry.name for entry in os.scandir(folder) if is_image_name(entry.name))


def _web_items(web: Mapping[str, Sequence[str]], names: Mapping[str, str], source: Path) -> list[ImageItem]:
    labels = {name: label for label, name in enumerate(names)}
    unknown = [name for name in web if name not in labels]
    if unknown:
        raise InputError(f"{source} has web images of {unknown[0]!r}, which is none of the classes; select them again")
    return [ImageItem(path, labels[name]) for name, paths in web.items() for path in paths]


register_dataset("RegionalCrops", read_regional_crops, keep_val=True)
register_dataset("RegionalCropsNovel", read_regional_crops_novel, keep_val=True)
