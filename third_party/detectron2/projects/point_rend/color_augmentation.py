"""The colour augmentation of SSD (arXiv 1512.02325)."""

import random

import cv2
import numpy as np
from fvcore.transforms.transform import Transform

__all__ = ["ColorAugSSDTransform"]


class ColorAugSSDTransform(Transform):
    """Random brightness, contrast, saturation and hue, each with probability 1/2, contrast first or last.

    Unlike other transforms it is random itself: every ``apply_image`` draws anew from Python's ``random``.

    Args:
        img_format: "RGB" or "BGR"; images must be (H, W, 3) uint8.
        brightness_delta: largest shift in grey levels.
        contrast_low, contrast_high: range of the factor on grey levels.
        saturation_low, saturation_high: range of the factor on HSV's saturation.
        hue_delta: largest shift of HSV's hue, in units of 2 degrees.
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: int = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ) -> None:
        super().__init__()
        if img_format not in ("BGR", "RGB"):
            raise ValueError(f"img_format must be BGR or RGB, got {img_format!r}")
        self.is_rgb = img_format == "RGB"
        self.brightness_delta, self.hue_delta = brightness_delta, hue_delta
        self.contrast_low, self.contrast_high = contrast_low, contrast_high
        self.saturation_low, self.saturation_high = saturation_low, saturation_high

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(f"the colour augmentation needs (H, W, 3) uint8 images, got {img.shape} {img.dtype}")
        if self.is_rgb:
            img = img[:, :, ::-1]
        img = self.brightness(img)
        operations = [self.contrast, self.saturation, self.hue]
        if not _coin():
            operations = [self.saturation, self.hue, self.contrast]
        for operation in operations:
            img = operation(img)
        return img[:, :, ::-1] if self.is_rgb else img

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """``alpha * img + beta``, clipped and cut off to uint8."""
        return np.clip(img.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    def brightness(self, img: np.ndarray) -> np.ndarray:
        """Shift a BGR image's grey levels, or not."""
        if not _coin():
            return img
        return self.convert(img, beta=random.uniform(-self.brightness_delta, self.brightness_delta))

    def contrast(self, img: np.ndarray) -> np.ndarray:
        """Scale a BGR image's grey levels, or not."""
        if not _coin():
            return img
        return self.convert(img, alpha=random.uniform(self.contrast_low, self.contrast_high))

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Scale a BGR image's saturation, or not."""
        if not _coin():
            return img
        hsv = cv2.cvtColor(np.ascontiguousarray(img), cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = self.convert(hsv[:, :, 1], alpha=random.uniform(self.saturation_low, self.saturation_high))
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Shift a BGR image's hue, or not."""
        if not _coin():
            return img
        hsv = cv2.cvtColor(np.ascontiguousarray(img), cv2.COLOR_BGR2HSV)
        shift = random.randint(-self.hue_delta, self.hue_delta)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + shift) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def _coin() -> bool:
    return random.randrange(2) == 1
