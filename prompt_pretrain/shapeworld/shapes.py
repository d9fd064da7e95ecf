"""Outlines of the shapes: closed polygons in a square of side 2 around the origin, y pointing down."""

from collections.abc import Callable
from functools import cache

import numpy as np

Outline = tuple[np.ndarray, ...]  # contours of (n, 2) points; overlapping contours cut holes (even-odd rule)


@cache
def outline(shape: str) -> Outline:
    """Contours of a shape, centred and scaled so that the longer side of its bounding box is 2.

    Args:
        shape: a word of ``classes.SHAPES``.
    Returns:
        Float64 arrays of shape (n, 2), x before y. Treat them as read-only: they are cached.
    """
    contours = [np.asarray(contour, dtype=np.float64) for contour in _SHAPES[shape]()]
    points = np.concatenate(contours)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = 2.0 / (high - low).max()
    return tuple((contour - (low + high) / 2) * scale for contour in contours)


def _turn(count: int, start: float = -90.0, radius: float | np.ndarray = 1.0) -> np.ndarray:
    """``count`` points around the origin, clockwise on the screen from the angle ``start`` (-90 = top)."""
    angles = np.deg2rad(start) + 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.reshape(radius, (-1, 1))


def _arc(start: float, end: float, *, radius: float = 1.0, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    angles = np.deg2rad(np.linspace(start, end, 24))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + centre


def _circle() -> list[np.ndarray]:
    return [_turn(48)]


def _polygon(sides: int, start: float) -> Callable[[], list[np.ndarray]]:
    return lambda: [_turn(sides, start)]


def _diamond() -> list[np.ndarray]:
    return [_turn(4) * (0.62, 1.0)]


def _star() -> list[np.ndarray]:
    return [_turn(10, radius=np.tile([1.0, 0.42], 5))]


def _heart() -> list[np.ndarray]:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x, -y], axis=1)]


def _cross() -> list[np.ndarray]:
    upper = np.array([(-0.34, -0.34), (-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34)])
    return [np.concatenate([upper, -upper])]


def _arrow() -> list[np.ndarray]:
    return [np.array([(0, -1), (0.8, -0.1), (0.32, -0.1), (0.32, 1), (-0.32, 1), (-0.32, -0.1), (-0.8, -0.1)])]


def _crescent() -> list[np.ndarray]:
    outer = _arc(50, 310)
    inner = _arc(290, 70, radius=0.82, centre=(0.36, 0.0))
    return [np.concatenate([outer, inner])]


def _ring() -> list[np.ndarray]:
    return [_turn(48), _turn(40, radius=0.55)]


def _drop() -> list[np.ndarray]:
    return [np.concatenate([_arc(-25, 205, radius=0.66, centre=(0, 0.34)), [(0.0, -1.0)]])]


def _cloud() -> list[np.ndarray]:
    bumps = [
        _arc(90, 270, radius=0.36, centre=(-0.64, 0.2)),
        _arc(190, 320, radius=0.42, centre=(-0.28, -0.14)),
        _arc(220, 370, radius=0.36, centre=(0.32, -0.08)),
        _arc(-80, 90, radius=0.33, centre=(0.67, 0.23)),
    ]
    return [np.concatenate(bumps)]


def _flower() -> list[np.ndarray]:
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return [_turn(90, radius=0.72 + 0.28 * np.cos(5 * angles)), _turn(20, radius=0.2)]


def _gear() -> list[np.ndarray]:
    teeth = np.tile([1.0, 1.0, 0.74, 0.74], 8)
    return [_turn(32, radius=teeth), _turn(24, radius=0.3)]


def _bolt() -> list[np.ndarray]:
    return [np.array([(0.25, -1), (-0.55, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.1, -0.25), (0.55, -1)])]


def _leaf() -> list[np.ndarray]:
    side = _arc(-143, -37, radius=1.25, centre=(0, 0.75))  # two arcs that meet in points, then a stalk
    blade = np.concatenate([side, side[::-1] * (1, -1)])[:, ::-1] * (1, 1)
    stalk = np.array([(-0.05, 0.9), (0.05, 0.9), (0.05, 1.35), (-0.05, 1.35)])
    return [blade, stalk]


def _house() -> list[np.ndarray]:
    wall = np.array([(0, -1), (0.95, -0.15), (0.7, -0.15), (0.7, 0.9), (-0.7, 0.9), (-0.7, -0.15), (-0.95, -0.15)])
    door = np.array([(-0.2, 0.9), (-0.2, 0.3), (0.2, 0.3), (0.2, 0.9)])
    return [wall, door]


def _fish() -> list[np.ndarray]:
    back = _arc(-140, -25, radius=0.86, centre=(-0.2, 0.4))
    body = np.concatenate([back, [(1.0, -0.5), (0.82, 0.0), (1.0, 0.5)], back[::-1] * (1, -1)])
    return [body, _turn(10, radius=0.08) + (-0.52, -0.1)]


def _mushroom() -> list[np.ndarray]:
    cap = _arc(180, 360, centre=(0, 0.0))
    stem = np.array([(0.32, 0.08), (0.4, 0.95), (-0.4, 0.95), (-0.32, 0.08)])
    return [np.concatenate([cap, stem])]


_SHAPES: dict[str, Callable[[], list[np.ndarray]]] = {
    "circle": _circle,
    "square": _polygon(4, -45.0),
    "triangle": _polygon(3, -90.0),
    "diamond": _diamond,
    "hexagon": _polygon(6, 0.0),
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "arrow": _arrow,
    "crescent": _crescent,
    "ring": _ring,
    "drop": _drop,
    "cloud": _cloud,
    "flower": _flower,
    "gear": _gear,
    "bolt": _bolt,
    "leaf": _leaf,
    "house": _house,
    "fish": _fish,
    "mushroom": _mushroom,
}
