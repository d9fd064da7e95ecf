"""What annotations say of a scene: masks, boxes, polygons, run lengths, label maps."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from prompt_pretrain.shapeworld.scenes import Scene

MIN_PIXELS = 12
MIN_VISIBLE_SHARE = 0.25


def is_recognisable(scene: Scene, position: int) -> bool:
    """Whether enough of a thing is visible to annotate it; ``position`` counts ``scene.plan.things``."""
    visible = int((scene.thing_map == position + 1).sum())
    return visible >= MIN_PIXELS and visible >= MIN_VISIBLE_SHARE * scene.areas[position]


def visible_mask(scene: Scene, positions: Sequence[int]) -> np.ndarray:
    """(H, W) bool, where any of these things is visible."""
    return np.isin(scene.thing_map, np.asarray(positions) + 1)


def label_map(
    scene: Scene, thing_ids: Sequence[int], ground_ids: Mapping[str, int], *, ignore: int = 255
) -> np.ndarray:
    """(H, W) uint8, or uint16 if an id needs it, with the id of what is visible at each pixel.

    Things that are too hidden or too small to annotate have the value ``ignore``.

    Args:
        thing_ids: id of each label of the scene's class mix.
        ground_ids: id of each ground; grounds that are not listed have the value ``ignore``.
    """
    largest = max([ignore, *thing_ids, *ground_ids.values()])
    grounds = np.array([ground_ids.get(ground, ignore) for ground in scene.plan.grounds])
    things = [
        thing_ids[placed.label] if is_recognisable(scene, position) else ignore
        for position, placed in enumerate(scene.plan.things)
    ]
    ids = np.where(scene.thing_map == 0, grounds[scene.ground_map], np.array([ignore, *things])[scene.thing_map])
    return ids.astype(np.uint8 if largest < 256 else np.uint16)


def tight_box(mask: np.ndarray) -> list[int]:
    """x, y, width and height of the smallest box around a mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def polygons(mask: np.ndarray) -> list[list[int]]:
    """Flat lists x0, y0, x1, y1, … of pixel corners; filled and united they give the (H, W) bool mask exactly.

    Polygons cannot have holes: a part with a hole is cut in two through it.
    """
    found: list[list[int]] = []
    pieces = [mask]
    while pieces:
        piece = pieces.pop()
        # Each pixel twice as wide and high: then the contours' coordinates tell both sides of a pixel apart.
        double = np.repeat(np.repeat(piece.astype(np.uint8), 2, axis=0), 2, axis=1)
        contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        holes = [contour for contour, links in zip(contours, hierarchy[0], strict=True) if links[3] >= 0]
        if holes:
            column = int(holes[0][:, 0, 0].min() + 1) // 2 + 1
            left, right = piece.copy(), piece.copy()
            left[:, column:] = False
            right[:, :column] = False
            pieces += [part for part in (right, left) if part.any()]
        else:
            found += [_without_needless_points((contour[:, 0] + 1) // 2) for contour in contours]
    return found


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask: column by column, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _without_needless_points(points: np.ndarray) -> list[int]:
    """Drop repeated points, then those on a straight line between their neighbours."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return points[turns].ravel().tolist()
