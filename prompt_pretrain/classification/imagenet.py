"""ImageNet-1K and ImageNet-21K-P in their published layouts."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from prompt_pretrain.classification.class_names import names_of_folders, read_class_names
from prompt_pretrain.classification.class_tree import read_class_tree
from prompt_pretrain.classification.folders import classification_data, read_splits
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.vocabulary import imagenet21k_names

logger = logging.getLogger(__name__)

TREE_FILE = "imagenet21k_miil_tree.pth"


def read_imagenet(
    root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
) -> ClassificationData:
    """ImageNet-1K: ``imagenet/images/{train,val}/<wnid>/*`` and ``imagenet/classnames.txt`` below ``root``.

    The validation images are the test images.

    Raises:
        InputError: anything missing or empty, or a folder that ``classnames.txt`` does not name.
    """
    folder = Path(root).absolute() / "imagenet"
    images = folder / "images"
    expected = f"ImageNet needs one folder or .tar archive per class in {images}/train and {images}/val"
    folders, (train, val, test) = read_splits(
        images / "train", images / "val", images / "val", expected=expected, test_only=test_only
    )
    source = Path(names_file) if names_file else folder / "classnames.txt"
    class_names = names_of_folders(folders, read_class_names(source), source)
    return classification_data("ImageNet", folder, folders, class_names, train, val, test)


def read_imagenet21k(
    root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
) -> ClassificationData:
    """ImageNet-21K-P: ``imagenet21k_resized/imagenet21k_{train,val}/<wnid>/*`` below ``root``.

    Names come from ``imagenet21k_miil_tree.pth`` beside them, else from this repository's list of ImageNet-21K names.
    The validation images are the test images.

    Raises:
        InputError: anything missing or empty, or a folder without a name.
    """
    folder = Path(root).absolute() / "imagenet21k_resized"
    train_folder, val_folder = folder / "imagenet21k_train", folder / "imagenet21k_val"
    expected = f"ImageNet-21K needs one folder or .tar archive per class in {train_folder} and {val_folder}"
    folders, (train, val, test) = read_splits(
        train_folder, val_folder, val_folder, expected=expected, test_only=test_only
    )
    class_names = _imagenet21k_names(folder, folders, names_file)
    return classification_data("ImageNet21K", folder, folders, class_names, train, val, test)


def read_imagenet21k_small_classes(
    root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
) -> ClassificationData:
    """The classes with few images that ImageNet-21K-P leaves out, ``imagenet21k_small_classes/<wnid>/*``.

    A label set of its own, for evaluation: the same images are the training, validation and test list.
    """
    folder = Path(root).absolute() / "imagenet21k_resized"
    images = folder / "imagenet21k_small_classes"
    expected = f"the small classes of ImageNet-21K need one folder or .tar archive per class in {images}"
    folders, (train, val, test) = read_splits(images, images, images, expected=expected, test_only=test_only)
    class_names = _imagenet21k_names(folder, folders, names_file)
    return classification_data("ImageNet21KSmallClasses", folder, folders, class_names, train, val, test)


def _imagenet21k_names(folder: Path, folders: Sequence[str], names_file: str | os.PathLike | None) -> tuple[str, ...]:
    tree = folder / TREE_FILE
    if names_file:
        return names_of_folders(folders, read_class_names(names_file), names_file)
    if tree.exists():
        return names_of_folders(folders, read_class_tree(tree).class_description, tree)
    logger.info("%s is not there; taking the class names from the built-in list of ImageNet-21K", tree)
    return names_of_folders(folders, imagenet21k_names(), f"the built-in list of ImageNet-21K ({tree} is missing)")
