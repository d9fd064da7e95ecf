"""Augmentations of mask classification (ZSSeg's stage 1): the box of one class, cut out and resized."""

import math
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import CropTransform, PadTransform, Transform, TransformList

from detectron2.data import transforms as T

__all__ = ["CenterCrop", "CropImageWithMask", "RandomResizedCrop", "box_of_class", "expand_box"]

_TRIES = 10

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


def box_of_class(labels: np.ndarray, category: int) -> Box:
    """The tight box of the pixels of a class, which must have some."""
    mask = labels == category
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    assert len(rows), f"no pixel has the label {category}"
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def expand_box(box: Box, ratio: float, height: int, width: int) -> Box:
    """``box`` with ``ratio`` times its sides about the same centre, inside of an image of this size.

    As published, its right and lower edge stay one pixel away from those of the image.
    """
    x, y, box_width, box_height = box
    center_x, center_y = x + 0.5 * box_width, y + 0.5 * box_height
    left = max(center_x - 0.5 * box_width * ratio, 0)
    top = max(center_y - 0.5 * box_height * ratio, 0)
    right = min(center_x + 0.5 * box_width * ratio, width - 1)
    bottom = min(center_y + 0.5 * box_height * ratio, height - 1)
    return int(left), int(top), max(int(right - left), 1), max(int(bottom - top), 1)


class CropImageWithMask(T.Augmentation):
    """Cut out the box of the class ``category_id`` of the ``AugInput``.

    Args:
        expand_ratios: sides of the crop / sides of the box; one is drawn.
    """

    def __init__(self, expand_ratios: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.expand_ratios = tuple(expand_ratios)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray, category_id: int) -> Transform:
        height, width = image.shape[:2]
        # Drawn even from a single one, so that seeds give the published samples.
        ratio = float(np.random.choice(self.expand_ratios))
        x, y, box_width, box_height = expand_box(box_of_class(sem_seg, category_id), ratio, height, width)
        return CropTransform(x, y, box_width, box_height)


class RandomResizedCrop(T.Augmentation):
    """Cut out a random rectangle and resize it, as for training on ImageNet.

    Args:
        size: (width, height) of the result.
        scale: smallest and largest area of the rectangle, as a share of the image's.
        ratio: smallest and largest width / height of the rectangle.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__()
        self.size, self.scale, self.ratio = tuple(size), scale, ratio

    def get_transform(self, image: np.ndarray) -> Transform:
        x, y, width, height = self._rectangle(*image.shape[:2])
        new_width, new_height = self.size
        return TransformList(
            [CropTransform(x, y, width, height), T.ResizeTransform(height, width, new_height, new_width)]
        )

    def _rectangle(self, height: int, width: int) -> Box:
        for _ in range(_TRIES):
            area = height * width * np.random.uniform(*self.scale)
            ratio = math.exp(np.random.uniform(*map(math.log, self.ratio)))
            new_width, new_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < new_width <= width and 0 < new_height <= height:
                x = np.random.randint(0, width - new_width + 1)
                y = np.random.randint(0, height - new_height + 1)
                return int(x), int(y), new_width, new_height
        # None fitted into a very long image: the largest rectangle with an allowed ratio, in the middle.
        low, high = self.ratio
        new_width, new_height = width, height
        if width / height < low:
            new_height = max(round(width / low), 1)
        elif width / height > high:
            new_width = max(round(height * high), 1)
        return (width - new_width) // 2, (height - new_height) // 2, new_width, new_height


class CenterCrop(T.Augmentation):
    """Cut out the middle, and pad where the image is smaller: pixels with 0, labels with ``seg_ignore_label``.

    Args:
        size: side in pixels, or (height, width).
    """

    def __init__(self, size: int | tuple[int, int], seg_ignore_label: int = 255) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.seg_ignore_label = seg_ignore_label

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        new_height, new_width = self.size
        left, top = max(new_width - width, 0) // 2, max(new_height - height, 0) // 2
        right, bottom = max(new_width - width, 0) - left, max(new_height - height, 0) - top
        pad = PadTransform(left, top, right, bottom, width, height, 0, self.seg_ignore_label)
        x = round((width + left + right - new_width) / 2)
        y = round((height + top + bottom - new_height) / 2)
        return TransformList([pad, CropTransform(x, y, new_width, new_height)])
