"""Where the labels of a picture go, so that they do not cover each other."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

__all__ = ["LabelPlacer"]
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


class LabelPlacer:
    """Hands out places for rectangles within an image, the important ones first.

    Attributes:
        placed: (n, 4) x0, y0, x1, y1 of what has its place.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.placed = np.zeros((0, 4))

    def beside_box(self, size: Size, box: Box) -> tuple[int, int]:
        """Top left corner for the label of a box: above it, else within or below, else near by.

        Where everything is full, the place with the least overlap.
        """
        place = self._take(size, _around(size, box))
        assert place is not None  # some corner is always the best
        return place

    def at_point(self, size: Size, point: tuple[float, float]) -> tuple[int, int] | None:
        """Top left corner for a label centred at ``point`` or close to it; None where there is no free place."""
        x, y = point[0] - size[0] / 2, point[1] - size[1] / 2
        steps = (0, -1, 1, -2, 2)
        return self._take(size, ((x, y + 1.1 * step * size[1]) for step in steps), must_be_free=True)

    def _take(
        self, size: Size, corners: Iterable[tuple[float, float]], *, must_be_free: bool = False
    ) -> tuple[int, int] | None:
        best, least = None, np.inf
        for x, y in corners:
            corner = self._inside(x, y, size)
            overlap = self._overlap(corner, size)
            if overlap < least:
                best, least = corner, overlap
            if overlap == 0:
                break
        if best is None or (must_be_free and least > 0):
            return None
        self.placed = np.vstack([self.placed, [*best, best[0] + size[0], best[1] + size[1]]])
        return best

    def _inside(self, x: float, y: float, size: Size) -> tuple[int, int]:
        """The nearest corner for which the label lies in the image, if it fits at all."""
        return round(max(min(x, self.width - size[0]), 0)), round(max(min(y, self.height - size[1]), 0))

    def _overlap(self, corner: tuple[int, int], size: Size) -> float:
        """Pixels that the label would share with others."""
        x0, y0 = corner
        widths = np.minimum(self.placed[:, 2], x0 + size[0]) - np.maximum(self.placed[:, 0], x0)
        heights = np.minimum(self.placed[:, 3], y0 + size[1]) - np.maximum(self.placed[:, 1], y0)
        return float((widths.clip(0) * heights.clip(0)).sum())


def _around(size: Size, box: Box) -> Iterator[tuple[float, float]]:
    """Corners for the label of a box, the best first."""
    (width, height), (x0, y0, x1, y1) = size, box
    yield x0, y0 - height  # above
    yield x0, y0  # within, at the top
    yield x0, y1  # below
    yield x0, y1 - height
    yield x1 - width, y0 - height
    yield x1 - width, y0
    yield x1 - width, y1
    yield x1 - width, y1 - height
    yield x1, y0
    yield x0 - width, y0
    columns: Sequence[float] = np.linspace(x0, max(x1 - width, x0), 3).tolist()
    for step in range(1, 8):  # within and around the box, line by line
        for column in columns:
            yield column, y0 + step * height
            yield column, y0 - (step + 1) * height
