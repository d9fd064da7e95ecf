"""Surface patterns: how much of the second tone shows at each point of an object."""

from collections.abc import Callable

import numpy as np

Field = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray]


def pattern_field(pattern: str, u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    """Share of the second tone, float32 in [0, 1], at object coordinates ``u`` (right) and ``v`` (down) in [-1, 1].

    Args:
        pattern: a word of ``classes.PATTERNS``; "plain" and "hollow" (which differs in its mask) give zeros.
        u, v: (h, w) coordinates.
        pixel: size of a pixel in these coordinates; edges are about that soft, repeats stay a few pixels long.
        rng: draws period and phase.
    """
    return _FIELDS[pattern](u, v, pixel, rng)


def _edge(wave: np.ndarray, slope: float) -> np.ndarray:
    """Soft step at zero of a wave whose steepest slope per pixel is ``slope``."""
    return np.clip(wave / max(slope, 1e-3) + 0.5, 0.0, 1.0)


def _frequency(lowest: float, highest: float, pixel: float, rng: np.random.Generator) -> float:
    """Angular frequency between two bounds, at least five pixels a period."""
    return min(lowest + (highest - lowest) * rng.random(), 2 * np.pi / (5 * pixel))


def _plain(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    return np.zeros_like(u)


def _striped(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    frequency = _frequency(7.0, 10.0, pixel, rng)
    angle = np.pi / 4 + 0.5 * (rng.random() - 0.5)
    wave = np.sin(frequency * (u * np.cos(angle) + v * np.sin(angle)) + 6.28 * rng.random())
    return _edge(wave, frequency * pixel)


def _dotted(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    frequency = _frequency(7.0, 9.0, pixel, rng)
    wave = np.cos(frequency * u + 6.28 * rng.random()) + np.cos(frequency * v + 6.28 * rng.random()) - 0.75
    return _edge(wave, frequency * pixel)


def _checkered(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    frequency = _frequency(5.5, 7.5, pixel, rng)
    wave = np.sin(frequency * u + 6.28 * rng.random()) * np.sin(frequency * v + 6.28 * rng.random())
    return _edge(wave, 0.6 * frequency * pixel)


def _ringed(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    frequency = _frequency(8.0, 11.0, pixel, rng)
    return _edge(np.sin(frequency * np.hypot(u, v) + 6.28 * rng.random()), frequency * pixel)


def _zigzag(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    frequency = _frequency(7.0, 9.0, pixel, rng)
    tooth = 0.36 * np.abs((2.2 * u + rng.random()) % 1.0 - 0.5) * 2
    return _edge(np.sin(frequency * (v + tooth) + 6.28 * rng.random()), frequency * pixel)


def _wavy(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    frequency = _frequency(7.0, 9.0, pixel, rng)
    bend = 0.16 * np.sin(5.5 * u + 6.28 * rng.random())
    return _edge(np.sin(frequency * (v + bend) + 6.28 * rng.random()), frequency * pixel)


def _speckled(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    cells = 15
    table = (rng.random((cells + 1, cells + 1)) < 0.28).astype(np.float32)
    column = np.clip((u + 1.2) * (cells / 2.4), 0, cells).astype(np.int32)
    row = np.clip((v + 1.2) * (cells / 2.4), 0, cells).astype(np.int32)
    return table[row, column]


def _shaded(u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(0.5 + 0.62 * v, 0.0, 1.0)


_FIELDS: dict[str, Field] = {
    "plain": _plain,
    "hollow": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "ringed": _ringed,
    "zigzag": _zigzag,
    "wavy": _wavy,
    "speckled": _speckled,
    "shaded": _shaded,
}
