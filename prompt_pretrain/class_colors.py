"""A colour for every class name: the same in every picture, vocabulary and run."""

import hashlib
import math
from functools import lru_cache

__all__ = ["class_color", "text_color"]
Color = tuple[int, int, int]

# Lightness and chroma in OKLab: light enough to show on dark pictures and dark enough for bright ones.
_SHADES = ((0.66, 0.19), (0.78, 0.15), (0.56, 0.17))
# From OKLab to linear sRGB (B. Ottosson, "A perceptual color space for image processing", 2020).
_CONES = ((1.0, 0.3963377774, 0.2158037573), (1.0, -0.1055613458, -0.0638541728), (1.0, -0.0894841775, -1.2914855480))
_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


@lru_cache(maxsize=65536)
def class_color(name: str) -> Color:
    """RGB in 0 … 255 of a class, by its name alone; case, ``_`` and blanks around it do not matter.

    Hues are spread evenly over names, so that any picture's few classes are mostly told apart.
    """
    digest = hashlib.sha256(name.replace("_", " ").strip().casefold().encode()).digest()
    hue = int.from_bytes(digest[:4], "big") / 2**32
    lightness, chroma = _SHADES[digest[4] % len(_SHADES)]
    return _from_oklch(lightness, chroma, 2 * math.pi * hue)


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher contrast on ``background`` (WCAG 2.1, at least 4.5 : 1)."""
    return (0, 0, 0) if _luminance(background) > 0.179 else (255, 255, 255)


def _from_oklch(lightness: float, chroma: float, hue: float) -> Color:
    """The colour, with as much of its chroma as a screen can show."""
    for step in range(20):
        part = chroma * (1 - step / 20)
        lab = (lightness, part * math.cos(hue), part * math.sin(hue))
        cones = [sum(a * b for a, b in zip(row, lab, strict=True)) ** 3 for row in _CONES]
        linear = [sum(a * b for a, b in zip(row, cones, strict=True)) for row in _RGB]
        if all(-1e-3 <= value <= 1 + 1e-3 for value in linear):
            break
    red, green, blue = (round(255 * _gamma(min(max(value, 0.0), 1.0))) for value in linear)
    return red, green, blue


def _gamma(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def _luminance(color: Color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
