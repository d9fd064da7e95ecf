"""ShapeWorld on disk, in whichever of the layouts it was written."""

import os
from dataclasses import replace
from pathlib import Path

from prompt_pretrain.classification.folders import read_image_folder
from prompt_pretrain.classification.imagenet import read_imagenet21k
from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.writers import NOVEL_FOLDER


def read_shapeworld(
    root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
) -> ClassificationData:
    """ShapeWorld in ``root/shapeworld`` or in ``root`` itself, as ImageNet-21K-P folders or as plain class folders.

    Raises:
        InputError: nothing there, or anything wrong with it.
    """
    folder = _world(root)
    read = read_imagenet21k if (folder / "imagenet21k_resized").is_dir() else read_image_folder
    return replace(read(folder, names_file, test_only=test_only), name="ShapeWorld")


def read_shapeworld_novel(
    root: str | os.PathLike, names_file: str | os.PathLike | None = None, *, test_only: bool = False
) -> ClassificationData:
    """The classes of ShapeWorld that its training images never show; they have test images only.

    Raises:
        InputError: nothing there, or anything wrong with it.
    """
    folder = _world(root) / NOVEL_FOLDER
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder: this ShapeWorld has no novel classes; make one with: "
            f"python tools/make_shapeworld.py --novel-classes 200 --output NEW_FOLDER"
        )
    return replace(read_image_folder(folder, names_file, test_only=test_only), name="ShapeWorldNovel")


def _world(root: str | os.PathLike) -> Path:
    root = Path(root).absolute()
    folder = root / "shapeworld" if (root / "shapeworld").is_dir() else root
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; make ShapeWorld with: python tools/make_shapeworld.py")
    return folder
