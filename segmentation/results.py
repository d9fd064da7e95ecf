"""What a segmenter found in one image: a label map, class names and areas, and how they become files."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image
from torch import Tensor

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.errors import InputError

__all__ = ["Segment", "SegmentationResult"]


@dataclass(frozen=True, eq=False)
class Segment:
    """All pixels of one class.

    Attributes:
        class_name: as the vocabulary spells it.
        class_id: position in the vocabulary.
        area: in pixels of the original image.
        share: of the image, in (0, 1].
        mask: (H, W) bool.
    """

    class_name: str
    class_id: int
    area: int
    share: float
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """The class of every pixel. Its length is the number of classes found; iterating gives :class:`Segment`.

    Classes come in the order of their areas, largest first.

    Attributes:
        label_map: (H, W) int64 positions in the vocabulary, at the size of the original image, on the CPU.
        vocabulary: the class names that were looked for.
        source: the image's path, ``VIDEO#FRAME`` or its number in the list.
        index: position among the inputs.
    """

    label_map: Tensor
    vocabulary: tuple[str, ...]
    source: str = ""
    index: int = 0

    def __len__(self) -> int:
        return len(self._present)

    def __iter__(self) -> Iterator[Segment]:
        for class_id, area in self._present:
            mask = (self.label_map == class_id).numpy()
            yield Segment(self.vocabulary[class_id], class_id, area, area / self.label_map.numel(), mask)

    def __repr__(self) -> str:
        largest = ", ".join(
            f"{name} {area / self.label_map.numel():.0%}" for name, area in list(self.areas.items())[:3]
        )
        return f"SegmentationResult({self.source or self.index}: {len(self)} classes: {largest})"

    @property
    def height(self) -> int:
        """Of the image in pixels."""
        return self.label_map.shape[0]

    @property
    def width(self) -> int:
        """Of the image in pixels."""
        return self.label_map.shape[1]

    @property
    def class_ids(self) -> list[int]:
        """Positions in the vocabulary of the classes found."""
        return [class_id for class_id, _ in self._present]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes found."""
        return [self.vocabulary[class_id] for class_id in self.class_ids]

    @property
    def areas(self) -> dict[str, int]:
        """Name of each class found -> its area in pixels."""
        return {self.vocabulary[class_id]: area for class_id, area in self._present}

    def mask(self, class_name: str) -> np.ndarray:
        """(H, W) bool, the pixels of a class; none of them for one that was looked for in vain.

        Raises:
            InputError: a name that was not looked for.
        """
        if class_name not in self.vocabulary:
            raise InputError(f"class {class_name!r} is not among the {len(self.vocabulary)} classes of this result")
        return (self.label_map == self.vocabulary.index(class_name)).numpy()

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """One entry per class in the format of COCO's stuff results.

        Each holds ``image_id``, ``category_id`` (position in the vocabulary + 1), ``segmentation`` (compressed run
        lengths), ``area``, and ``category_name``, which COCO's tools ignore.

        Args:
            image_id: default: :attr:`index`.
        """
        entries = []
        for found in self:
            run_lengths = mask_util.encode(np.asfortranarray(found.mask, dtype=np.uint8))
            run_lengths["counts"] = run_lengths["counts"].decode("ascii")
            entries.append(
                {
                    "image_id": self.index if image_id is None else image_id,
                    "category_id": found.class_id + 1,
                    "segmentation": run_lengths,
                    "area": found.area,
                    "category_name": found.class_name,
                }
            )
        return entries

    def save_label_map(self, path: str | os.PathLike) -> None:
        """Write the label map as an image of one channel, 8 bits, or 16 where the vocabulary needs them.

        Raises:
            InputError: a path that does not end with .png.
        """
        if Path(path).suffix.lower() != ".png":
            raise InputError(f"label maps are written as .png, which changes no value, not to {path}")
        kind = np.uint8 if len(self.vocabulary) <= 256 else np.uint16
        with atomic_writer(path) as file:
            Image.fromarray(self.label_map.numpy().astype(kind)).save(file, format="png")

    def draw(self, image: np.ndarray, *, legend: bool = False) -> np.ndarray:
        """The image (H, W, 3) RGB uint8 with classes in colour and their names drawn over it.

        Args:
            legend: add a column at the right with the classes and their shares.
        """
        from prompt_pretrain.overlays import draw_label_map

        return draw_label_map(image, self.label_map.numpy(), self.vocabulary, legend=legend)

    @cached_property
    def _present(self) -> list[tuple[int, int]]:
        """(class id, area), largest first."""
        class_ids, areas = torch.unique(self.label_map, return_counts=True)
        order = areas.argsort(descending=True, stable=True)
        return list(zip(class_ids[order].tolist(), areas[order].tolist(), strict=True))
