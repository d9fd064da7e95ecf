"""A mask given in any of the usual forms, and turned into the others when they are asked for."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

__all__ = ["GenericMask"]


class GenericMask:
    """A mask as a bitmap or as polygons.

    Attributes:
        mask: (H, W) uint8 of 0 and 1.
        polygons: outlines as arrays x, y, x, y, …; what is inside of a hole counts as covered.
        has_holes: whether some outline surrounds what is not covered.
        holes: outlines of the holes, in the opposite direction.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        """``mask_or_polygons``: a bitmap (H, W), a list of polygons, or a run-length encoding (also uncompressed).

        Raises:
            ValueError: it is none of these, or has another size.
        """
        self.height, self.width = height, width
        self._mask: np.ndarray | None = None
        self._polygons: list[np.ndarray] | None = None
        self._holes: list[np.ndarray] | None = None
        if isinstance(mask_or_polygons, dict):
            self._mask = self._decode(mask_or_polygons)
        elif isinstance(mask_or_polygons, list):
            self._polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in mask_or_polygons]
            self._holes = []
        elif isinstance(mask_or_polygons, np.ndarray):
            if mask_or_polygons.shape != (height, width):
                raise ValueError(f"a mask has the shape {mask_or_polygons.shape}, expected {(height, width)}")
            self._mask = (mask_or_polygons != 0).astype(np.uint8)
        else:
            raise ValueError(
                f"{type(mask_or_polygons).__name__} is no mask; expected an array, a list of polygons or a "
                f"run-length encoding"
            )

    def _decode(self, rle: dict[str, Any]) -> np.ndarray:
        if tuple(rle["size"]) != (self.height, self.width):
            raise ValueError(f"a run-length encoding has the size {rle['size']}, expected {[self.height, self.width]}")
        if isinstance(rle["counts"], list):
            rle = mask_utils.frPyObjects(rle, self.height, self.width)
        return mask_utils.decode(rle)

    @property
    def mask(self) -> np.ndarray:
        if self._mask is None:
            self._mask = self.polygons_to_mask(self._polygons or [])
        return self._mask

    @property
    def polygons(self) -> list[np.ndarray]:
        self._trace()
        return self._polygons or []

    @property
    def holes(self) -> list[np.ndarray]:
        self._trace()
        return self._holes or []

    @property
    def has_holes(self) -> bool:
        return bool(self.holes)

    def _trace(self) -> None:
        if self._polygons is None:
            self._polygons, self._holes = self._trace_contours(self.mask)

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines of a bitmap, holes left out, and whether there are holes."""
        outlines, holes = self._trace_contours(mask)
        return outlines, bool(holes)

    def _trace_contours(self, mask: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        contours, hierarchy = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if hierarchy is None:  # nothing is covered
            return [], []
        is_hole = hierarchy.reshape(-1, 4)[:, 3] >= 0  # it lies in another contour
        # Contours run through the centres of pixels. Two points are no polygon.
        lines = [(c.reshape(-1) + 0.5, hole) for c, hole in zip(contours, is_hole, strict=True) if len(c) >= 3]
        return [line for line, hole in lines if not hole], [line for line, hole in lines if hole]

    def polygons_to_mask(self, polygons: Sequence[np.ndarray]) -> np.ndarray:
        """(H, W) uint8 of the union."""
        polygons = [polygon.tolist() for polygon in polygons if len(polygon) >= 6]
        if not polygons:
            return np.zeros((self.height, self.width), dtype=np.uint8)
        return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, self.height, self.width)))

    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    def bbox(self) -> np.ndarray:
        """(4,) x0, y0, x1, y1 around the covered pixels; zeros where there are none."""
        ys, xs = np.nonzero(self.mask)
        if not len(xs):
            return np.zeros(4)
        return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=np.float64)
