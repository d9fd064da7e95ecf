"""The cross-dataset classification sets in the form their authors publish: images, labels, class names, test images."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from prompt_pretrain.classification.file_names import is_image_name
from prompt_pretrain.classification.split_files import SplitRow
from prompt_pretrain.classification.split_sets import SPLIT_SETS
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import load_vocabulary


class Labelled(NamedTuple):
    """Labelled images; ``test`` is None where the authors do not say which images are for testing."""

    train: list[SplitRow]
    test: list[SplitRow] | None


_CALTECH_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
_CALTECH_LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")


def read_labelled(name: str, root: Path) -> Labelled:
    """The labelled images of a data set below ``root``, sorted by label.

    Raises:
        InputError: a file of the data set is missing or of another form.
    """
    split_set = SPLIT_SETS[name]
    folder = root / split_set.folder
    if name in _FOLDER_SETS:
        return Labelled(_class_folders(split_set.image_folder(root), **_FOLDER_SETS[name]), None)
    try:
        found = _READERS[name](folder)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; extract all archives of {name} in {folder}") from error
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"the lists of {name} in {folder} are not as published ({error!r}); extract them again"
        ) from error
    return Labelled(*(None if rows is None else sorted(rows, key=lambda row: row.label) for rows in found))


def _class_folders(
    images: Path, skip: Sequence[str] = (), names: Callable[[list[str]], Sequence[str]] = list
) -> list[SplitRow]:
    """One sub-folder per class, labels in the order of their names; ``names`` gives class names for folders."""
    if not images.is_dir():
        raise InputError(f"{images} is not a folder; extract the images there, one folder per class")
    folders = sorted(path.name for path in images.iterdir() if path.is_dir() and path.name not in skip)
    folders = [folder for folder in folders if not folder.startswith(".")]
    rows = []
    for label, (folder, name) in enumerate(zip(folders, names(folders), strict=True)):
        files = sorted(path.name for path in (images / folder).iterdir() if is_image_name(path.name))
        if not files:
            raise InputError(f"no images for class {images / folder}; add some or remove the empty class")
        rows += [SplitRow(f"{folder}/{file}", label, name) for file in files]
    return rows


def _eurosat_names(folders: list[str]) -> list[str]:
    """The published names, which begin with the same word: ``AnnualCrop`` is "Annual Crop Land"."""
    names = {name.split()[0]: name for name in load_vocabulary("eurosat").class_names}
    first_words = [re.sub("(?<=[a-z])[A-Z].*", "", folder) for folder in folders]
    return [names.get(word, folder) for word, folder in zip(first_words, folders, strict=True)]


_FOLDER_SETS: dict[str, dict[str, Any]] = {
    "Caltech101": {
        "skip": _CALTECH_LEFT_OUT,
        "names": lambda folders: [_CALTECH_NAMES.get(folder, folder) for folder in folders],
    },
    "DescribableTextures": {},
    "EuroSAT": {"names": _eurosat_names},
    "Food101": {},
}


def _pets(folder: Path) -> Labelled:
    """``annotations/{trainval,test}.txt``: image, class from 1, species, breed; the breed's name is in the image's."""

    def rows(file: str) -> list[SplitRow]:
        lines = [line.split() for line in _lines(folder / "annotations" / file) if not line.startswith("#")]
        return [
            SplitRow(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()) for image, label, *_ in lines
        ]

    return Labelled(rows("trainval.txt"), rows("test.txt"))


def _cars(folder: Path) -> Labelled:
    """MATLAB files; class names end in the year, which the published split puts in front."""
    names = [str(name) for name in np.atleast_1d(_matlab(folder / "devkit" / "cars_meta.mat")["class_names"])]

    def rows(file: Path, images: str) -> list[SplitRow]:
        found = []
        for entry in np.atleast_1d(_matlab(file)["annotations"]):
            label = int(entry["class"]) - 1
            model, _, year = names[label].rpartition(" ")
            found.append(SplitRow(f"{images}/{entry['fname']}", label, f"{year} {model}"))
        return found

    train = rows(folder / "devkit" / "cars_train_annos.mat", "cars_train")
    return Labelled(train, rows(folder / "cars_test_annos_withlabels.mat", "cars_test"))


def _flowers(folder: Path) -> Labelled:
    """``imagelabels.mat``: labels from 1 of the images in order; ``cat_to_name.json``: their names."""
    labels = np.atleast_1d(_matlab(folder / "imagelabels.mat")["labels"]).tolist()
    names = json.loads((folder / "cat_to_name.json").read_text(encoding="utf-8"))
    rows = [
        SplitRow(f"image_{number:05d}.jpg", int(label) - 1, names[str(int(label))])
        for number, label in enumerate(labels, start=1)
    ]
    return Labelled(rows, None)


def _sun(folder: Path) -> Labelled:
    """``/a/apse/indoor`` is class "indoor apse"; labels are line numbers of ``ClassName.txt``."""
    labels = {name: label for label, name in enumerate(_lines(folder / "ClassName.txt"))}

    def rows(file: str) -> list[SplitRow]:
        found = []
        for line in _lines(folder / file):
            place = str(PurePosixPath(line).parent)
            words = PurePosixPath(place).parts[2:]  # without the root and the letter
            found.append(SplitRow(line.lstrip("/"), labels[place], " ".join(reversed(words))))
        return found

    return Labelled(rows("Training_01.txt"), rows("Testing_01.txt"))


def _ucf(folder: Path) -> Labelled:
    """Lists of videos, each of which stands for its middle frame; ``YoYo`` is class ``Yo_Yo``."""
    lists = folder / "ucfTrainTestlist"
    labels = {name: int(number) - 1 for number, name in map(str.split, _lines(lists / "classInd.txt"))}

    def rows(file: str) -> list[SplitRow]:
        found = []
        for line in _lines(lists / file):
            action, _, video = line.split()[0].partition("/")
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            found.append(SplitRow(f"{name}/{Path(video).stem}.jpg", labels[action], name))
        return found

    return Labelled(rows("trainlist01.txt"), rows("testlist01.txt"))


_READERS: dict[str, Callable[[Path], Labelled]] = {
    "OxfordPets": _pets,
    "StanfordCars": _cars,
    "OxfordFlowers": _flowers,
    "SUN397": _sun,
    "UCF101": _ucf,
}


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _matlab(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    if not file.exists():  # loadmat would look for other names
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return loadmat(str(file), squeeze_me=True)
