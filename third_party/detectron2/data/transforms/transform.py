"""Deterministic transforms beyond those of fvcore: resizing, extents, rotation, colour functions.

Coordinates are continuous (the pixel with index i covers [i, i + 1]) in (x, y) order; sizes are (height, width).
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = ["ColorTransform", "ExtentTransform", "PILColorTransform", "ResizeTransform", "RotationTransform"]

_TORCH_MODES = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


class ResizeTransform(Transform):
    """Resize to a fixed size: uint8 through Pillow (antialiased), other types through torch (not antialiased).

    Args:
        h, w: size of the images it will be given.
        new_h, new_w: size to make.
        interp: a Pillow resampling filter, bilinear by default. Label maps always use nearest.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.interp = Image.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an (H, W) or (H, W, C) image."""
        if img.ndim not in (2, 3) or img.shape[:2] != (self.h, self.w):
            raise AssertionError(
                f"this resize was made for ({self.h}, {self.w}) images, with or without channels, got {img.shape}"
            )
        interp = self.interp if interp is None else interp
        return self._resize_uint8(img, interp) if img.dtype == np.uint8 else self._resize_other(img, interp)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)

    def _resize_uint8(self, img: np.ndarray, interp: int) -> np.ndarray:
        one_channel = img.ndim == 3 and img.shape[2] == 1  # Pillow knows grey images as 2-D only
        picture = Image.fromarray(img[:, :, 0] if one_channel else _order_channels(img))
        resized = np.asarray(picture.resize((self.new_w, self.new_h), interp))
        return resized[:, :, None] if one_channel else resized

    def _resize_other(self, img: np.ndarray, interp: int) -> np.ndarray:
        if interp not in _TORCH_MODES:
            raise ValueError(f"images of type {img.dtype} can be resized nearest, bilinear or bicubic, not by {interp}")
        mode = _TORCH_MODES[interp]
        # torch interpolates floating-point tensors only; float64 holds every label exactly.
        work = img if np.issubdtype(img.dtype, np.floating) else img.astype(np.float64)
        planes = torch.from_numpy(np.ascontiguousarray(work)).reshape(*img.shape[:2], -1).permute(2, 0, 1)[None]
        align_corners = None if mode == "nearest" else False
        planes = F.interpolate(planes, (self.new_h, self.new_w), mode=mode, align_corners=align_corners)
        resized = planes[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()
        if work is not img and mode != "nearest":
            resized = np.rint(resized)
        return resized.astype(img.dtype, copy=False)


class ExtentTransform(Transform):
    """Show a rectangle of the source, which may reach beyond the image, as the whole output.

    Args:
        src_rect: (x0, y0, x1, y1) in the source.
        output_size: (h, w).
        interp: a Pillow resampling filter. As in the real detectron2 it serves label maps too, where it mixes labels:
            give ``Image.NEAREST`` if there are any.
        fill: value of what lies outside the source.
    """

    def __init__(
        self,
        src_rect: Sequence[float],
        output_size: tuple[int, int],
        interp: int = Image.BILINEAR,
        fill: float = 0,
    ) -> None:
        super().__init__()
        self.src_rect, self.output_size, self.interp, self.fill = src_rect, output_size, interp, fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        height, width = self.output_size
        one_channel = img.ndim == 3 and img.shape[2] == 1
        picture = Image.fromarray(img[:, :, 0] if one_channel else img)
        bands = len(picture.getbands())
        result = picture.transform(
            size=(width, height),
            method=Image.EXTENT,
            data=tuple(self.src_rect),
            resample=self.interp if interp is None else interp,
            fillcolor=self.fill if bands == 1 else (self.fill,) * bands,
        )
        array = np.asarray(result)
        return array[:, :, None] if one_channel else array

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        coords = coords.astype(np.float32)
        coords[:, 0] = (coords[:, 0] - 0.5 * (x0 + x1)) * (width / (x1 - x0)) + 0.5 * width
        coords[:, 1] = (coords[:, 1] - 0.5 * (y0 + y1)) * (height / (y1 - y0)) + 0.5 * height
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation)


class RotationTransform(Transform):
    """Rotate counter-clockwise by ``angle`` degrees.

    Args:
        h, w: size of the images it will be given.
        expand: make the canvas large enough for the whole rotated image; else keep the size.
        center: (x, y) that stays in place without ``expand``; the middle of the image by default.
        interp: an OpenCV interpolation flag, linear by default. Label maps always use nearest.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.interp = cv2.INTER_LINEAR if interp is None else interp
        middle = np.array([w / 2, h / 2])
        self.center = middle if center is None else np.asarray(center, dtype=np.float64)
        radians = np.deg2rad(angle)
        cos, sin = np.cos(radians), np.sin(radians)
        self.bound_h, self.bound_w = h, w
        if expand:
            self.bound_w = int(np.rint(h * abs(sin) + w * abs(cos)))
            self.bound_h = int(np.rint(h * abs(cos) + w * abs(sin)))
        # p -> R (p - a) + b. The y axis points down, so counter-clockwise on screen has the sine above the diagonal.
        self._rotation = np.array([[cos, sin], [-sin, cos]])
        self._from = middle if expand else self.center
        self._to = np.array([self.bound_w / 2, self.bound_h / 2]) if expand else self.center

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.size == 0 or self.angle % 360 == 0:
            return img
        assert img.shape[:2] == (self.h, self.w), f"this rotation is for ({self.h}, {self.w}) images, got {img.shape}"
        # OpenCV counts from the middle of the first pixel, which has the coordinate 0.5.
        shift = self._rotation @ (0.5 - self._from) + self._to - 0.5
        matrix = np.concatenate([self._rotation, shift[:, None]], axis=1)
        flags = self.interp if interp is None else interp
        return cv2.warpAffine(np.ascontiguousarray(img), matrix, (self.bound_w, self.bound_h), flags=flags)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return (coords - self._from) @ self._rotation.T + self._to

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> Transform:
        """Rotate back, then cut off what the two expansions added."""
        if not self.expand:
            raise NotImplementedError("a rotation that keeps the size loses its corners and has no inverse")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        crop = CropTransform((back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2, self.w, self.h)
        return TransformList([back, crop])


class ColorTransform(Transform):
    """Apply ``op`` (array -> array) to the image; coordinates and label maps stay."""

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(op):
            raise ValueError(f"op must be callable, got {op!r}")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """The same with an ``op`` from Pillow image to Pillow image."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(self.op(Image.fromarray(img)))


def _order_channels(img: np.ndarray) -> np.ndarray:
    """The same image; one whose channels are a reversed view (BGR) becomes an array, much faster than by NumPy."""
    if img.ndim == 3 and img.shape[2] == 3 and img.strides[2] == -1 and img[:, :, ::-1].flags.c_contiguous:
        return cv2.cvtColor(img[:, :, ::-1], cv2.COLOR_RGB2BGR)
    return img
