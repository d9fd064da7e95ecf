"""Random augmentations: the geometric ones here, those of colour in ``color.py``."""

import sys
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from detectron2.data.transforms.augmentation import AugInput, Augmentation, _as_augmentation
from detectron2.data.transforms.color import RandomBrightness, RandomContrast, RandomLighting, RandomSaturation
from detectron2.data.transforms.transform import ExtentTransform, ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomExtent",
    "RandomFlip",
    "RandomLighting",
    "RandomResize",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]

_CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")


class RandomApply(Augmentation):
    """Apply an augmentation or a transform with a probability."""

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        super().__init__()
        assert 0.0 <= prob <= 1.0, f"the probability must be in [0, 1], got {prob}"
        self.aug = _as_augmentation(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: object) -> Transform:
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: AugInput) -> Transform:
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Flip with a probability, horizontally or vertically (use two for both)."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        super().__init__()
        if horizontal == vertical:
            raise ValueError(
                f"exactly one of horizontal and vertical must be true, got {horizontal} and {vertical}; "
                f"use two RandomFlip for both"
            )
        self.prob, self.horizontal, self.vertical = prob, horizontal, vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resize to ``shape`` = (h, w), or (s, s) for an int."""

    def __init__(self, shape: int | tuple[int, int], interp: int = Image.BILINEAR) -> None:
        super().__init__()
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class RandomResize(Augmentation):
    """Resize to one of several (h, w)."""

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = Image.BILINEAR) -> None:
        super().__init__()
        self.shape_list, self.interp = list(shape_list), interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = self.shape_list[np.random.choice(len(self.shape_list))]
        return ResizeTransform(*image.shape[:2], height, width, self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale so that the short side gets a random length, unless that makes the long side exceed ``max_size``.

    Args:
        short_edge_length: lengths to choose from; with ``sample_style="range"`` the smallest and the largest. Zero
            leaves the image as it is.
        sample_style: "range" or "choice".
        interp: a Pillow resampling filter.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), f"sample_style must be range or choice, got {sample_style!r}"
        lengths = (short_edge_length,) * 2 if isinstance(short_edge_length, int) else tuple(short_edge_length)
        self.is_range = sample_style == "range"
        assert not self.is_range or len(lengths) == 2, (
            f"with sample_style 'range' short_edge_length must be two values, smallest and largest, got {lengths}"
        )
        self.short_edge_length, self.max_size = lengths, max_size
        self.sample_style, self.interp = sample_style, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self.is_range:
            low, high = self.short_edge_length
            size = np.random.randint(low, high + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        new_h, new_w = self.get_output_shape(height, width, size, self.max_size)
        return ResizeTransform(height, width, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """(h, w) after scaling the short side to ``short_edge_length``, the long side to at most ``max_size``."""
        scale = float(short_edge_length) / min(oldh, oldw)
        # The short side is exact, not a product: rounding could make it one pixel less.
        new_h = float(short_edge_length) if oldh < oldw else scale * oldh
        new_w = scale * oldw if oldh < oldw else float(short_edge_length)
        longest = max(new_h, new_w)
        if longest > max_size:
            new_h, new_w = new_h * (max_size / longest), new_w * (max_size / longest)
        return int(new_h + 0.5), int(new_w + 0.5)


class ResizeScale(Augmentation):
    """Fit the image into a target size times a random factor, keeping its aspect ratio (large-scale jitter)."""

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.BILINEAR,
    ) -> None:
        super().__init__()
        self.min_scale, self.max_scale, self.interp = min_scale, max_scale, interp
        self.target_height, self.target_width = target_height, target_width

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.min_scale, self.max_scale)
        factor = min(self.target_height * scale / height, self.target_width * scale / width)
        new_h, new_w = (max(round(side * factor), 1) for side in (height, width))
        return ResizeTransform(height, width, new_h, new_w, self.interp)


class RandomRotation(Augmentation):
    """Rotate by a random angle.

    Args:
        angle: degrees: one, two (``sample_style="range"``) or several (``"choice"``).
        expand: enlarge the canvas so that nothing is cut off.
        center: relative (x, y) of the centre of rotation: two corners of a range, or choices. Unused with ``expand``.
        interp: an OpenCV interpolation flag.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[tuple[float, float]] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), f"sample_style must be range or choice, got {sample_style!r}"
        self.angle = (angle, angle) if isinstance(angle, (int, float)) else tuple(angle)
        if center is not None and isinstance(center[0], (int, float)):
            center = (center, center)
        self.expand, self.center, self.sample_style, self.interp = expand, center, sample_style, interp
        self.is_range = sample_style == "range"

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(*self.angle)
            if self.center is not None:
                (x0, y0), (x1, y1) = self.center
                center = (np.random.uniform(x0, x1), np.random.uniform(y0, y1))
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.choice(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = (width * center[0], height * center[1])
        return RotationTransform(height, width, angle, expand=self.expand, center=center, interp=self.interp)


class RandomExtent(Augmentation):
    """Show a randomly scaled and shifted rectangle of the image, which may reach beyond its borders.

    Args:
        scale_range: smallest and largest factor on the image's size.
        shift_range: (x, y), the largest distances between the centres as a share of the image's size, times two.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        super().__init__()
        self.scale_range, self.shift_range = scale_range, shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(*self.scale_range)
        center_x = width * (0.5 + self.shift_range[0] * (np.random.rand() - 0.5))
        center_y = height * (0.5 + self.shift_range[1] * (np.random.rand() - 0.5))
        half_w, half_h = 0.5 * width * scale, 0.5 * height * scale
        rectangle = (center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h)
        size = (max(int(2 * half_h), 1), max(int(2 * half_w), 1))
        return ExtentTransform(rectangle, size)


class RandomCrop(Augmentation):
    """Cut out a window at a random place.

    Args:
        crop_type: how ``crop_size`` = (h, w) is meant. "relative": share of the image's size; "relative_range":
            smallest share, the largest is 1; "absolute": pixels; "absolute_range": smallest and largest side in pixels.
            A side never exceeds the image.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        super().__init__()
        assert crop_type in _CROP_TYPES, f"crop_type must be one of {', '.join(_CROP_TYPES)}, got {crop_type!r}"
        self.crop_type, self.crop_size = crop_type, crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((height, width))
        assert height >= crop_h and width >= crop_w, f"cannot cut {crop_h}x{crop_w} out of {height}x{width}"
        y0 = np.random.randint(height - crop_h + 1)
        x0 = np.random.randint(width - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the next window in an image of this size."""
        height, width = image_size
        if self.crop_type.startswith("relative"):
            share_h, share_w = np.asarray(self.crop_size, dtype=np.float32)
            if self.crop_type == "relative_range":
                shares = np.array([share_h, share_w])
                share_h, share_w = shares + np.random.rand(2) * (1 - shares)
            return int(height * share_h + 0.5), int(width * share_w + 0.5)
        if self.crop_type == "absolute":
            return min(int(self.crop_size[0]), height), min(int(self.crop_size[1]), width)
        low, high = self.crop_size
        assert low <= high, f"absolute_range needs (smallest, largest), got {tuple(self.crop_size)}"
        crop_h = np.random.randint(min(height, low), min(height, high) + 1)
        crop_w = np.random.randint(min(width, low), min(width, high) + 1)
        return crop_h, crop_w


class RandomCrop_CategoryAreaConstraint(Augmentation):  # noqa: N801
    """A ``RandomCrop`` that retries (10 times) until no class covers too much of the window.

    Args:
        single_category_max_area: largest share of one class among the labelled pixels; from 1.0 on, no constraint.
        ignored_category: label that does not count.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type, self.crop_size = crop_type, crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        assert sem_seg is not None, "a crop constrained by category area needs the label map: AugInput(sem_seg=...)"
        for _ in range(10):
            crop = self.crop_aug.get_transform(image)
            labels, counts = np.unique(crop.apply_segmentation(sem_seg), return_counts=True)
            if self.ignored_category is not None:
                counts = counts[labels != self.ignored_category]
            if len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area:
                break
        return crop


class FixedSizeCrop(Augmentation):
    """Cut out a window of exactly ``crop_size``; where the image is smaller, pad it at the right and the bottom.

    Args:
        crop_size: (h, w).
        pad: whether to pad.
        pad_value, seg_pad_value: what to pad the image and the label map with.
    """

    def __init__(
        self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ) -> None:
        super().__init__()
        self.crop_size, self.pad = tuple(crop_size), pad
        self.pad_value, self.seg_pad_value = pad_value, seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = image.shape[:2]
        crop_h, crop_w = self.crop_size
        position = np.random.uniform(0.0, 1.0)  # one number for both axes
        y0 = int(np.round(max(height - crop_h, 0) * position))
        x0 = int(np.round(max(width - crop_w, 0) * position))
        transforms: list[Transform] = [CropTransform(x0, y0, crop_w, crop_h, width, height)]
        if self.pad:
            kept_h, kept_w = min(height, crop_h), min(width, crop_w)
            transforms.append(
                PadTransform(0, 0, crop_w - kept_w, crop_h - kept_h, kept_w, kept_h, self.pad_value, self.seg_pad_value)
            )
        return TransformList(transforms)
