"""Ground-truth label maps of a registered data set, checked when they are read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from prompt_pretrain.errors import InputError

__all__ = ["GroundTruthMaps", "read_label_map"]


def read_label_map(file_name: str) -> np.ndarray:
    """(H, W) int64 values of an image file as stored; 8 and 16 bits, palettes included.

    Raises:
        InputError: the file is missing or is no image of one channel.
    """
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            labels = np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"label map {file_name} does not exist; check DETECTRON2_DATASETS") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"label map {file_name} cannot be read ({error}); write it again") from error
    if labels.ndim != 2:
        raise InputError(f"label map {file_name} has shape {labels.shape}; expected one channel with a class per pixel")
    return labels.astype(np.int64)


class GroundTruthMaps:
    """Label maps by image file, with "ignored" as the index behind the last class."""

    def __init__(self, dataset_name: str, load: Callable[[str], np.ndarray] = read_label_map) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.ignore_label: int = metadata.get("ignore_label", 255)
        self._load = load
        self._files = {record["file_name"]: record["sem_seg_file_name"] for record in DatasetCatalog.get(dataset_name)}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def file_of(self, image_file: str) -> str:
        """The label map of an image.

        Raises:
            InputError: the data set has none.
        """
        try:
            return self._files[image_file]
        except KeyError:
            raise InputError(f"data set {self.dataset_name} has no label map for {image_file}") from None

    def __getitem__(self, record: dict[str, Any]) -> Tensor:
        """(H, W) int64 labels from 0 to C of the image ``record["file_name"]``.

        Raises:
            InputError: no such map, an unreadable one, or labels that are no class; names the file.
        """
        file = self.file_of(record["file_name"])
        labels = np.array(self._load(file), dtype=np.int64)
        ignored = labels == self.ignore_label
        wrong = (labels < 0) | (labels >= self.num_classes) & ~ignored
        if wrong.any():
            values = np.unique(labels[wrong])[:10].tolist()
            raise InputError(
                f"label map {file} has {int(wrong.sum())} pixels with labels {values}, expected 0 to "
                f"{self.num_classes - 1} or the ignored {self.ignore_label}; prepare {self.dataset_name} again "
                f"(tools/check_dataset.py {self.dataset_name} lists all such files)"
            )
        labels[ignored] = self.num_classes
        return torch.from_numpy(labels)
