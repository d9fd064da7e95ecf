"""A fixed palette of distinct colours for drawing."""

import colorsys
import functools

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_HUES = 12
_SHADES = [(0.85, 0.95), (0.55, 1.0), (0.95, 0.65), (0.45, 0.75), (0.9, 0.4), (0.3, 0.95)]  # (saturation, value)


@functools.cache
def _palette() -> np.ndarray:
    """(72, 3) RGB in [0, 1]; neighbours in the list differ much in hue."""
    colors = []
    for round_, (saturation, value) in enumerate(_SHADES):
        for step in range(_HUES):
            hue = (step * 5 % _HUES + round_ / len(_SHADES)) / _HUES  # 5 and 12 share no divisor: every hue once
            colors.append(colorsys.hsv_to_rgb(hue, saturation, value))
    return np.array(colors, dtype=np.float32)


def colormap(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """(72, 3) float32 colours in [0, maximum], which is 1 or 255; blue first unless ``rgb``."""
    _check_maximum(maximum)
    colors = _palette() * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """(3,) one colour of the palette, drawn with NumPy's global generator."""
    return random_colors(1, rgb, maximum)[0]


def random_colors(N: int, rgb: bool = False, maximum: float = 255) -> np.ndarray:  # noqa: N803
    """(N, 3) different colours of the palette as long as there are enough, drawn with NumPy's global generator."""
    _check_maximum(maximum)
    count = len(_palette())
    picked = [np.random.permutation(count)[: N - start] for start in range(0, N, count)]
    return colormap(rgb, maximum)[np.concatenate(picked)] if picked else np.zeros((0, 3), dtype=np.float32)


def _check_maximum(maximum: float) -> None:
    if maximum not in (1, 255):
        raise ValueError(f"maximum of a colour is {maximum}, expected 1 or 255")
