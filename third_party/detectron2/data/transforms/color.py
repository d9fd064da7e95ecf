"""Random augmentations of colour: brightness, contrast, saturation, lighting."""

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from detectron2.data.transforms.augmentation import Augmentation

_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue (BT.601)
# Principal components of ImageNet's colours (AlexNet's "PCA noise"): one eigenvector per column.
_COLOR_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_COLOR_VARIANCES = np.array([0.2175, 0.0188, 0.0045])


class _Intensity(Augmentation):
    """Blend with a random weight in [intensity_min, intensity_max]: below 1 less of it, above 1 more."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self.intensity_min, self.intensity_max = intensity_min, intensity_max

    def _blend(self, other: np.ndarray | float) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=other, src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_Intensity):
    """Blend with the image's mean value."""

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._blend(image.mean())


class RandomBrightness(_Intensity):
    """Blend with black."""

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._blend(0)


class RandomSaturation(_Intensity):
    """Blend with the grey version of an RGB image."""

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, f"RandomSaturation needs RGB images, got {image.shape[-1]} channels"
        return self._blend(image.dot(_LUMA)[:, :, None])


class RandomLighting(Augmentation):
    """Shift the colour of an RGB image along the principal components of natural colours.

    Args:
        scale: standard deviation of the shift along each component.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, f"RandomLighting needs RGB images, got {image.shape[-1]} channels"
        weights = np.random.normal(scale=self.scale, size=3)
        shift = _COLOR_AXES @ (weights * _COLOR_VARIANCES)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)
