"""The ten cross-dataset sets: published folders, images and splits (the CoOp split files; Aircraft's own lists)."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prompt_pretrain.classification.class_names import names_of_folders, read_class_names
from prompt_pretrain.classification.folders import classification_data
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.classification.split_files import (
    OnProblem,
    Rows,
    SplitRow,
    as_item_list,
    class_names_of,
    fail,
    missing_images,
    read_split_file,
)
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import clean_class_name, load_vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitSet:
    """A data set of a split file and the images it names.

    Attributes:
        name: registered name.
        folder: of the data set, below the data root.
        images: folder that paths in the split file are relative to, below ``folder``.
    """

    name: str
    folder: str
    images: str

    def split_file(self, root: str | os.PathLike) -> Path:
        """The file that says which images are for what."""
        return Path(root).absolute() / self.folder / f"split_zhou_{self.name}.json"

    def image_folder(self, root: str | os.PathLike) -> Path:
        """What the paths of :meth:`rows` are relative to."""
        return Path(root).absolute() / self.folder / self.images

    def rows(self, root: str | os.PathLike, on_problem: OnProblem = fail) -> Rows:
        """What the split says.

        Raises:
            InputError: the data set or its split file is missing or damaged.
        """
        self._check_folder(root)
        remedy = (
            "get the published split file (docs/DATASETS_CLASSIFICATION.md), or make another split with: "
            f"python datasets/prepare_split.py {self.name} --root {root}"
        )
        return read_split_file(self.split_file(root), remedy, on_problem)

    def read(
        self,
        root: str | os.PathLike,
        names_file: str | os.PathLike | None = None,
        *,
        test_only: bool = False,
        check_images: bool = True,
    ) -> ClassificationData:
        """The data set below ``root``.

        Args:
            names_file: other class names, ``{name in the split: name to use}``.
            test_only: leave ``train`` empty and do not look for any image but the test images.
            check_images: find out now whether every image is there, not when it is opened.

        Raises:
            InputError: anything missing, damaged or contradicting itself.
        """
        rows = self.rows(root)
        file, images = self.split_file(root), self.image_folder(root)
        class_names = class_names_of(rows, file)
        if check_images:
            for split in ("test",) if test_only else tuple(rows):
                missing = missing_images(rows[split], images)
                if missing:
                    raise InputError(
                        f"{file}: {len(missing):,} of the {len(rows[split]):,} {split} images are not in {images}, the "
                        f"first is {missing[0]}; extract the images again, or remove the entries from the file"
                    )
        difference = difference_from_published(self.name, class_names)
        if difference:
            logger.warning("%s: %s; the names and labels of the file are used", file, difference)
        if names_file:
            class_names = names_of_folders(class_names, read_class_names(names_file), names_file)
        train, val, test = (as_item_list(rows[split], images) for split in rows)
        folder = Path(root).absolute() / self.folder
        return classification_data(self.name, folder, (), class_names, train[:0] if test_only else train, val, test)

    def _check_folder(self, root: str | os.PathLike) -> None:
        folder = Path(root).absolute() / self.folder
        if not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder; {self.name} needs images in {self.image_folder(root)} and "
                f"{self.split_file(root)}, see docs/DATASETS_CLASSIFICATION.md"
            )


@dataclass(frozen=True)
class AircraftSet(SplitSet):
    """FGVC-Aircraft at variant level: ``variants.txt`` and ``images_variant_{train,val,test}.txt``, no split file.

    A line of a list is an image number, a blank and a variant, whose name may hold blanks.
    """

    def split_file(self, root: str | os.PathLike) -> Path:
        return Path(root).absolute() / self.folder / "variants.txt"

    def rows(self, root: str | os.PathLike, on_problem: OnProblem = fail) -> Rows:
        self._check_folder(root)
        file = self.split_file(root)
        variants = [line for line in _lines(file) if line]
        labels = {variant: label for label, variant in enumerate(variants)}
        if len(labels) != len(variants):
            twice = next(name for name in variants if variants.count(name) > 1)
            on_problem("class names differ", f"{file} lists {twice!r} twice; extract the data set again")
        rows: Rows = {}
        for split in ("train", "val", "test"):
            rows[split] = []
            source = file.with_name(f"images_variant_{split}.txt")
            for number, line in enumerate(_lines(source), start=1):
                image, _, variant = line.partition(" ")
                if not line:
                    continue
                if variant.strip() in labels and image and os.sep not in image:
                    rows[split].append(SplitRow(f"{image}.jpg", labels[variant.strip()], variant.strip()))
                else:
                    found = f"{source} line {number}, {line!r}, "
                    on_problem("entry", f"{found}is not an image number and a variant of {file}; extract the set again")
        return rows


SPLIT_SETS: dict[str, SplitSet] = {
    entry.name: entry
    for entry in (
        SplitSet("Caltech101", "caltech-101", "101_ObjectCategories"),
        SplitSet("OxfordPets", "oxford_pets", "images"),
        SplitSet("StanfordCars", "stanford_cars", ""),
        SplitSet("OxfordFlowers", "oxford_flowers", "jpg"),
        SplitSet("Food101", "food-101", "images"),
        AircraftSet("FGVCAircraft", "fgvc_aircraft", "images"),
        SplitSet("SUN397", "sun397", "SUN397"),
        SplitSet("DescribableTextures", "dtd", "images"),
        SplitSet("EuroSAT", "eurosat", "2750"),
        SplitSet("UCF101", "ucf101", "UCF-101-midframes"),
    )
}


def difference_from_published(name: str, class_names: Sequence[str]) -> str:
    """How ``class_names`` differ from the published list of data set ``name``; empty if they agree."""
    published = load_vocabulary(name).class_names
    if len(class_names) != len(published):
        return f"{len(class_names)} classes where {name} has {len(published)}"
    for label, (found, known) in enumerate(zip(class_names, published, strict=True)):
        if clean_class_name(found) != clean_class_name(known):
            return f"class {label} is {found!r}, {known!r} in the list of {name} that comes with this suite"
    return ""


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{file}: {reason}; extract the data folder of fgvc-aircraft-2013b there") from error
