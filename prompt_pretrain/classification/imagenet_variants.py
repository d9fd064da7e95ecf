"""The four cross-domain sets, which test a classifier of ImageNet-1K: V2, Sketch, A and R. None has training images.

V2 and Sketch have all 1,000 classes, A and R 200 each and are classified among those. Names come from
``classnames.txt`` in the data set's folder, else that of ``imagenet``, else this repository's list.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from prompt_pretrain.classification.class_names import names_of_folders, read_class_names
from prompt_pretrain.classification.folders import classification_data, read_splits
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.classification.listing import as_items, list_class_folders
from prompt_pretrain.classification.split_sets import difference_from_published
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import load_vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DomainSet:
    """A set of one folder per class of ImageNet-1K, for testing.

    Attributes:
        name: registered name.
        folder: of the data set, below the data root.
        images: folder of the class folders, below ``folder``.
        numbered: class folders are called by label (0 to 999) instead of by WordNet id.
    """

    name: str
    folder: str
    images: str
    numbered: bool = False

    def image_folder(self, root: str | os.PathLike) -> Path:
        """What holds the class folders."""
        return Path(root).absolute() / self.folder / self.images

    def read(
        self, root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
    ) -> ClassificationData:
        """The data set below ``root``; its test images are also the training and validation images, as published.

        Raises:
            InputError: anything missing or empty, a class folder without a name.
        """
        root = Path(root).absolute()
        images = self.image_folder(root)
        which = "its number, 0 to 999," if self.numbered else "its WordNet id"
        expected = f"{self.name} needs one folder of images per class, called by {which} in {images}"
        names, source = self._names(root, names_file)
        if self.numbered:
            data = self._read_numbered(images, expected, names, source)
        else:
            folders, (train, val, test) = read_splits(images, images, images, expected=expected)
            class_names = names_of_folders(folders, names, source)
            data = classification_data(self.name, root / self.folder, folders, class_names, train, val, test)
            known = set(load_vocabulary(self.name).ids)
            if set(folders) != known:
                logger.warning(
                    "%s holds %d class folders, the published %s %d; %d of them are missing",
                    *(images, len(folders), self.name, len(known), len(known - set(folders))),
                )
        difference = difference_from_published(self.name, data.class_names)
        if difference and len(data.class_names) == len(load_vocabulary(self.name)):
            logger.warning("%s: %s; the names of the file are used", source, difference)
        if test_only:
            return replace(data, train=data.test[:0], class_counts=())
        logger.warning("%s has no training images: its test images would be trained on", self.name)
        return data

    def _read_numbered(
        self, images: Path, expected: str, names: dict[str, str], source: str | os.PathLike
    ) -> ClassificationData:
        classes = list_class_folders(images, expected)
        labels: dict[str, int] = {}
        for entry in classes:
            if not entry.name.isdecimal() or int(entry.name) >= len(names):
                raise InputError(
                    f"{images / entry.name} is not a class: {source} names {len(names)}, so folders are called 0 to "
                    f"{len(names) - 1}; remove the folder or add names"
                )
            if int(entry.name) in labels.values():
                raise InputError(f"{images} holds class {int(entry.name)} twice, once as {entry.name}; keep one")
            labels[entry.name] = int(entry.name)
        if len(labels) < len(names):
            logger.warning("%s has images of %d classes of %d", images, len(labels), len(names))
        items = as_items(classes, labels)
        return classification_data(self.name, images.parent, tuple(names), tuple(names.values()), items, items, items)

    def _names(self, root: Path, names_file: str | os.PathLike | None) -> tuple[dict[str, str], str | os.PathLike]:
        """Names by WordNet id in label order, and where they come from."""
        if names_file:
            return read_class_names(names_file), names_file
        for file in (root / self.folder / "classnames.txt", root / "imagenet" / "classnames.txt"):
            if file.exists():
                return read_class_names(file), file
        built_in = load_vocabulary("imagenet1k")
        logger.info("no classnames.txt in %s; taking the built-in names of ImageNet-1K", root / self.folder)
        names = {str(wnid): name for wnid, name in zip(built_in.ids, built_in.class_names, strict=True)}
        return names, "the built-in list of ImageNet-1K"


DOMAIN_SETS: dict[str, DomainSet] = {
    entry.name: entry
    for entry in (
        DomainSet("ImageNetV2", "imagenetv2", "imagenetv2-matched-frequency-format-val", numbered=True),
        DomainSet("ImageNetSketch", "imagenet-sketch", "images"),
        DomainSet("ImageNetA", "imagenet-adversarial", "imagenet-a"),
        DomainSet("ImageNetR", "imagenet-rendition", "imagenet-r"),
    )
}
