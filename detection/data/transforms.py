"""Augmentations of the detector: large-scale jitter in EfficientDet's way, and lists of augmentations from a config."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import Transform
from PIL import Image

import detectron2.data.transforms as T
from detectron2.data.detection_utils import build_augmentation
from prompt_pretrain.errors import InputError

__all__ = ["EfficientDetResizeCrop", "EfficientDetResizeCropTransform", "build_custom_augmentation"]

CUSTOM_AUGMENTATIONS = ("", "ResizeShortestEdge", "EfficientDetResizeCrop", "DETR")
_DETR_CROP_SIZES = (400, 500, 600)  # of the shorter side before DETR's random crop (arXiv 2005.12872, appendix)


class EfficientDetResizeCropTransform(Transform):
    """Resize, then cut out a window; what the window exceeds the resized image by is left out, not padded.

    Args:
        scaled_h, scaled_w: size of the resized image.
        offset_y, offset_x: top left corner of the window in it.
        img_scale: factor on coordinates, the same for x and y.
        target_size: (height, width) of the window.
        interp: a Pillow resampling filter, bilinear by default. Label maps always use nearest.
    """

    def __init__(
        self,
        scaled_h: int,
        scaled_w: int,
        offset_y: int,
        offset_x: int,
        img_scale: float,
        target_size: tuple[int, int],
        interp: int | None = None,
    ) -> None:
        super().__init__()
        self.scaled_h, self.scaled_w = scaled_h, scaled_w
        self.offset_y, self.offset_x = offset_y, offset_x
        self.img_scale = img_scale
        self.target_size = target_size
        self.interp = Image.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(H, W) or (H, W, C): uint8 through Pillow (antialiased), other types through torch (not antialiased)."""
        filter_ = self.interp if interp is None else interp
        resized = self._resize_uint8(img, filter_) if img.dtype == np.uint8 else self._resize_other(img, filter_)
        bottom, right = self.offset_y + self.target_size[0], self.offset_x + self.target_size[1]
        return resized[self.offset_y : bottom, self.offset_x : right]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y) of the image as points of the window, in place."""
        coords[:, 0] = coords[:, 0] * self.img_scale - self.offset_x
        coords[:, 1] = coords[:, 1] * self.img_scale - self.offset_y
        return coords

    def inverse_apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points of the window as points of the image, in place."""
        coords[:, 0] = (coords[:, 0] + self.offset_x) / self.img_scale
        coords[:, 1] = (coords[:, 1] + self.offset_y) / self.img_scale
        return coords

    def inverse_apply_box(self, box: np.ndarray) -> np.ndarray:
        """(N, 4) xyxy boxes of the window as boxes of the image."""
        return self.inverse_apply_coords(np.array(box, dtype=np.float64).reshape(-1, 2)).reshape(-1, 4)

    def inverse(self) -> Transform:
        raise NotImplementedError("a crop cannot be undone; for coordinates there is inverse_apply_coords")

    def _resize_uint8(self, img: np.ndarray, interp: int) -> np.ndarray:
        one_channel = img.ndim == 3 and img.shape[2] == 1  # Pillow knows grey images as 2-D only
        # A view with a negative stride, as of a BGR image, makes Pillow copy it slowly.
        picture = Image.fromarray(np.ascontiguousarray(img[:, :, 0] if one_channel else img))
        resized = np.asarray(picture.resize((self.scaled_w, self.scaled_h), interp))
        return resized[:, :, None] if one_channel else resized

    def _resize_other(self, img: np.ndarray, interp: int) -> np.ndarray:
        # torch interpolates floating-point tensors only; float64 holds every label exactly.
        work = img if np.issubdtype(img.dtype, np.floating) else img.astype(np.float64)
        planes = torch.from_numpy(np.ascontiguousarray(work)).reshape(*img.shape[:2], -1).permute(2, 0, 1)[None]
        mode = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}[interp]
        align_corners = None if mode == "nearest" else False
        planes = F.interpolate(planes, (self.scaled_h, self.scaled_w), mode=mode, align_corners=align_corners)
        resized = planes[0].permute(1, 2, 0).reshape(self.scaled_h, self.scaled_w, *img.shape[2:]).numpy()
        return resized.astype(img.dtype, copy=False)


class EfficientDetResizeCrop(T.Augmentation):
    """Fit the image into a square whose side is jittered, then take a random window of the unjittered side.

    Three numbers come from NumPy's global generator: the factor on the side, the vertical and the horizontal place of
    the window. The result is smaller than the window where the resized image is (arXiv 1911.09070).

    Args:
        size: side of the square in pixels.
        scale: range of the factor.
        interp: a Pillow resampling filter.
    """

    def __init__(self, size: int, scale: Sequence[float], interp: int = Image.BILINEAR) -> None:
        super().__init__()
        low, high = scale
        if size < 1 or not 0 < low <= high:
            raise InputError(
                f"EfficientDetResizeCrop got size {size} and scale {tuple(scale)}; expected a positive size and "
                f"0 < low <= high: see INPUT.TRAIN_SIZE, INPUT.SCALE_RANGE and DATALOADER.DATASET_INPUT_*"
            )
        self.target_size = (size, size)
        self.scale = (low, high)
        self.interp = interp

    def get_transform(self, img: np.ndarray) -> Transform:
        height, width = img.shape[:2]
        side = self.target_size[0]
        factor = np.random.uniform(*self.scale)
        # As published, which decides the last bit: each side's own ratio, then the smaller one.
        img_scale = min(factor * side / height, factor * side / width)
        # The short side of a very elongated image would vanish; images that need this cannot be used upstream.
        scaled_h, scaled_w = max(int(height * img_scale), 1), max(int(width * img_scale), 1)
        offset_y = int(max(0.0, float(scaled_h - side)) * np.random.uniform(0, 1))
        offset_x = int(max(0.0, float(scaled_w - side)) * np.random.uniform(0, 1))
        return EfficientDetResizeCropTransform(
            scaled_h, scaled_w, offset_y, offset_x, img_scale, self.target_size, self.interp
        )


def build_custom_augmentation(
    cfg: Any,
    is_train: bool,
    scale: Sequence[float] | None = None,
    size: int | None = None,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
) -> list[T.Augmentation]:
    """What ``INPUT.CUSTOM_AUG`` names: resizing and, in training, flipping.

    Args:
        is_train: with random scales and flips.
        scale, size: of ``EfficientDetResizeCrop`` in training; by default INPUT.SCALE_RANGE and TRAIN_SIZE.
        min_size, max_size: of ``ResizeShortestEdge`` in training; by default INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN.
    Raises:
        InputError: the name is unknown.
    """
    name = cfg.INPUT.CUSTOM_AUG
    if name not in CUSTOM_AUGMENTATIONS:
        raise InputError(f"INPUT.CUSTOM_AUG is {name!r}, expected one of {', '.join(map(repr, CUSTOM_AUGMENTATIONS))}")
    if name == "EfficientDetResizeCrop":
        if not is_train:
            return [EfficientDetResizeCrop(cfg.INPUT.TEST_SIZE, (1, 1))]
        return [
            EfficientDetResizeCrop(
                cfg.INPUT.TRAIN_SIZE if size is None else size, cfg.INPUT.SCALE_RANGE if scale is None else scale
            ),
            *_flips(cfg),
        ]
    if name == "" or not is_train:
        return build_augmentation(cfg, is_train)
    resize = T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN if min_size is None else min_size,
        cfg.INPUT.MAX_SIZE_TRAIN if max_size is None else max_size,
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
    )
    if name == "ResizeShortestEdge":
        return [resize, *_flips(cfg)]
    return [*_flips(cfg), *_detr_crops(cfg), resize]


def _flips(cfg: Any) -> list[T.Augmentation]:
    """As detectron2's own list has them."""
    return [aug for aug in build_augmentation(cfg, True) if isinstance(aug, T.RandomFlip)]


def _detr_crops(cfg: Any) -> list[T.Augmentation]:
    """For every other image a random window of it after resizing, so that large objects get cut."""
    if not cfg.INPUT.CROP.ENABLED:
        return []
    first_resize = T.ResizeShortestEdge(_DETR_CROP_SIZES, sample_style="choice")
    crop = T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
    return [T.RandomApply(T.AugmentationList([first_resize, crop]), prob=0.5)]
