"""Grounds (stuff): procedural textures that things stand on."""

from collections.abc import Callable

import cv2
import numpy as np

Texture = Callable[[int, int, np.random.Generator], np.ndarray]


def ground_texture(ground: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A texture of (height, width, 3) float32 RGB in [0, 1].

    Args:
        ground: a word of :data:`GROUNDS`.
        rng: draws tint, phase and grain.
    """
    shade, tint = _GROUNDS[ground]
    pixels = shade(height, width, rng)[..., None] * (np.asarray(tint, np.float32) + 0.08 * (_uniform(rng, 3) - 0.5))
    return np.clip(pixels, 0.0, 1.0, out=pixels)


def _uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.random(shape, dtype=np.float32)


def _noise(height: int, width: int, rows: float, columns: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in about [-1, 1] with that many lumps down and across."""
    lattice = 2 * _uniform(rng, max(2, round(rows)), max(2, round(columns))) - 1
    return cv2.resize(lattice, (width, height), interpolation=cv2.INTER_CUBIC)


def _axes(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Row vector x and column vector y, in units of the shorter side, from a random origin."""
    scale = np.float32(1 / min(height, width))
    x0, y0 = _uniform(rng, 2)
    return np.arange(width, dtype=np.float32)[None] * scale + x0, np.arange(height, dtype=np.float32)[
        :, None
    ] * scale + y0


def _sand(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    return 0.88 + 0.08 * _noise(height, width, 5, 5, rng) + 0.1 * (_uniform(rng, height, width) - 0.5)


def _grass(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    return 0.7 + 0.28 * _noise(height, width, 9, 34, rng) + 0.14 * (_uniform(rng, height, width) - 0.5)


def _water(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(height, width, rng)
    return 0.76 + 0.17 * np.sin(42 * y + 2.2 * np.sin(7 * x) + 1.6 * _noise(height, width, 4, 4, rng))


def _brick(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(height, width, rng)
    course = np.floor(7 * y)
    joint = ((7 * y) % 1 < 0.15) | ((3.5 * x + 0.5 * (course % 2)) % 1 < 0.07)
    return np.where(joint, np.float32(1.15), 0.85 + 0.12 * _noise(height, width, 8, 8, rng))


def _wood(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(height, width, rng)
    return 0.78 + 0.16 * np.sin(30 * x + 3.0 * _noise(height, width, 3, 5, rng) + 0.8 * np.sin(3 * y))


def _snow(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    return 0.96 + 0.05 * _noise(height, width, 5, 5, rng)


def _gravel(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    return 0.62 + 0.34 * _noise(height, width, 15, 15, rng)


def _sky(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    _, y = _axes(height, width, rng)
    return 0.82 + 0.15 * (y - y.mean()) + 0.22 * np.maximum(_noise(height, width, 4, 4, rng), 0)


def _tiles(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(height, width, rng)
    joint = ((4 * x) % 1 < 0.07) | ((4 * y) % 1 < 0.07)
    return np.where(joint, np.float32(0.6), 0.95 + 0.05 * _noise(height, width, 4, 4, rng))


def _asphalt(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    return 0.55 + 0.22 * (_uniform(rng, height, width) - 0.5) + 0.05 * _noise(height, width, 4, 4, rng)


def _fabric(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(height, width, rng)
    return 0.75 + 0.12 * np.sin(70 * x) * np.sin(70 * y) + 0.06 * _noise(height, width, 3, 3, rng)


def _marble(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(height, width, rng)
    vein = np.abs(np.sin(5 * x + 4 * y + 3.5 * _noise(height, width, 5, 5, rng)))
    return 0.94 - 0.4 * np.maximum(0.25 - vein, 0) / 0.25


_GROUNDS: dict[str, tuple[Texture, tuple[float, float, float]]] = {
    "sand": (_sand, (0.9, 0.8, 0.58)),
    "grass": (_grass, (0.4, 0.68, 0.26)),
    "water": (_water, (0.3, 0.58, 0.78)),
    "brick": (_brick, (0.7, 0.4, 0.33)),
    "wood": (_wood, (0.72, 0.52, 0.34)),
    "snow": (_snow, (0.95, 0.97, 1.0)),
    "gravel": (_gravel, (0.72, 0.7, 0.67)),
    "sky": (_sky, (0.62, 0.8, 1.0)),
    "tiles": (_tiles, (0.78, 0.86, 0.85)),
    "asphalt": (_asphalt, (0.66, 0.67, 0.7)),
    "fabric": (_fabric, (0.74, 0.66, 0.82)),
    "marble": (_marble, (0.92, 0.9, 0.88)),
}
GROUNDS = tuple(_GROUNDS)
