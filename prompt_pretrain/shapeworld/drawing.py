"""Drawing one thing onto a canvas, and the rendering styles that decide how things and grounds look."""

import cv2
import numpy as np

from prompt_pretrain.shapeworld.classes import Thing
from prompt_pretrain.shapeworld.patterns import pattern_field
from prompt_pretrain.shapeworld.shapes import outline

STYLES = ("photo", "cartoon", "sketch", "painting", "pastel", "neon", "pixel", "plastic")
Box = tuple[float, float, float, float]

_RGB = {
    "red": (0.86, 0.1, 0.12),
    "orange": (1.0, 0.53, 0.05),
    "yellow": (0.98, 0.88, 0.12),
    "green": (0.12, 0.6, 0.2),
    "blue": (0.1, 0.28, 0.85),
    "purple": (0.5, 0.14, 0.66),
    "pink": (1.0, 0.52, 0.74),
    "brown": (0.46, 0.27, 0.12),
    "black": (0.07, 0.07, 0.08),
    "white": (0.97, 0.97, 0.96),
}
_LUMA = np.array([0.3, 0.59, 0.11], np.float32)
_SHIFT = 4  # fractional bits of the polygon coordinates handed to OpenCV


def draw_object(
    canvas: np.ndarray, thing: Thing, box: Box, rng: np.random.Generator, *, style: str = "photo"
) -> np.ndarray:
    """Draw ``thing`` into ``box``, in place, and return where it is.

    The outline is mirrored, stretched and turned by up to 20 degrees at random, then made as large as fits the box.

    Args:
        canvas: (H, W, 3) float32 RGB in [0, 1], changed in place.
        box: x0, y0, x1, y1 in pixels; parts outside the canvas are cut off.
        rng: draws pose, tones and the pattern's period and phase.
        style: a word of :data:`STYLES`.
    Returns:
        (H, W) float32 coverage in [0, 1], anti-aliased; a hollow thing covers its band only.
    """
    contours, to_object = _place(outline(thing.shape), box, rng)
    mask = np.zeros(canvas.shape[:2], np.float32)
    x0, y0, x1, y1 = _region(contours, canvas.shape[1], canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return mask
    local = [contour - (x0, y0) for contour in contours]
    pixel = float(np.hypot(to_object[0, 0], to_object[0, 1]))
    coverage = _fill(local, x1 - x0, y1 - y0)
    if thing.pattern == "hollow":
        coverage = np.minimum(coverage, _stroke(local, x1 - x0, y1 - y0, max(3.0, 0.42 / pixel)))

    x = np.arange(x0, x1, dtype=np.float32)[None] + 0.5
    y = np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5
    u = np.float32(to_object[0, 0]) * x + np.float32(to_object[0, 1]) * y + np.float32(to_object[0, 2])
    v = np.float32(to_object[1, 0]) * x + np.float32(to_object[1, 1]) * y + np.float32(to_object[1, 2])
    first, second = _tones(thing.colour, rng)
    share = pattern_field(thing.pattern, u, v, pixel, rng)[..., None]
    surface = first + (second - first) * share.astype(np.float32)

    region = canvas[y0:y1, x0:x1]
    edge = _stroke(local, x1 - x0, y1 - y0, max(1.0, 0.1 / pixel))
    surface, edge_colour, edge_weight = _render(style, surface, first, u, v, region)
    if style in ("photo", "plastic"):
        _cast_shadow(region, coverage, 0.05 / pixel)
    region += (surface - region) * coverage[..., None]
    if edge_weight:
        region += (edge_colour - region) * (edge_weight * edge * _near(coverage))[..., None]
    mask[y0:y1, x0:x1] = coverage
    return mask


def style_ground(texture: np.ndarray, style: str) -> np.ndarray:
    """How a ground texture (H, W, 3) looks in a style; a new array."""
    if style == "sketch":
        return 0.95 - 0.22 * np.clip(0.75 - texture @ _LUMA, 0, 1)[..., None] * np.ones(3, np.float32)
    if style == "neon":
        return texture * np.float32(0.16)
    if style == "pastel":
        return 0.62 + 0.36 * texture
    if style == "cartoon":
        return np.round(texture * 4) / np.float32(4)
    return texture.copy()


def finish(canvas: np.ndarray, style: str, rng: np.random.Generator, *, reach: float | None = None) -> np.ndarray:
    """Effects of a style on the whole picture, after everything was drawn; (H, W, 3) float32 in [0, 1].

    Args:
        reach: length in pixels that blur and glow are in proportion to; default: the picture's width.
    """
    height, width = canvas.shape[:2]
    reach = reach or width
    if style == "neon":
        glow = cv2.GaussianBlur(np.ascontiguousarray(canvas), (0, 0), max(1.0, reach / 20))
        canvas = canvas + 0.9 * glow
    elif style == "painting":
        canvas = cv2.medianBlur((np.clip(canvas, 0, 1) * 255).astype(np.uint8), 3).astype(np.float32) / 255
        strokes = cv2.resize(rng.random((height // 2 + 1, width // 6 + 1), dtype=np.float32), (width, height))
        canvas = np.round(canvas * 7) / 7 * (0.86 + 0.24 * strokes[..., None])
    elif style == "pastel":
        canvas = cv2.GaussianBlur(canvas, (0, 0), max(0.5, reach / 110))
    elif style == "pixel":
        small = cv2.resize(
            canvas, (max(1, round(width * 0.45)), max(1, round(height * 0.45))), interpolation=cv2.INTER_AREA
        )
        canvas = cv2.resize(np.round(small * 5) / 5, (width, height), interpolation=cv2.INTER_NEAREST)
    elif style == "sketch":
        canvas = canvas + 0.12 * (rng.random((height, width, 1), dtype=np.float32) - 0.5)
    elif style == "photo":
        slope = rng.random(2, dtype=np.float32) - 0.5
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        canvas = canvas * (1 + 0.45 * (slope[0] * x + slope[1] * y))[..., None]
        canvas += 0.07 * (rng.random((height, width, 3), dtype=np.float32) - 0.5)
    return np.clip(canvas, 0, 1)


def _place(shape: tuple[np.ndarray, ...], box: Box, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Contours in pixels, and the (2, 3) map from pixels to object coordinates."""
    angle = np.deg2rad(40.0) * (rng.random() - 0.5)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    stretch = 0.85 + 0.3 * rng.random()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([mirror * stretch, 1.0])
    turned = [contour @ matrix.T for contour in shape]
    points = np.concatenate(turned)
    low, high = points.min(axis=0), points.max(axis=0)
    corner, extent = np.array(box[:2]), np.array(box[2:]) - box[:2]
    scale = (extent / (high - low)).min()
    offset = corner + extent / 2 - scale * (low + high) / 2
    inverse = np.linalg.inv(matrix * scale)
    return [contour * scale + offset for contour in turned], np.hstack([inverse, -(inverse @ offset)[:, None]])


def _region(contours: list[np.ndarray], width: int, height: int) -> tuple[int, int, int, int]:
    points = np.concatenate(contours)
    x0, y0 = np.floor(points.min(axis=0)).astype(int) - 3
    x1, y1 = np.ceil(points.max(axis=0)).astype(int) + 4
    return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


def _fixed(contours: list[np.ndarray]) -> list[np.ndarray]:
    # OpenCV counts from pixel centres, we from pixel corners.
    return [np.round((contour - 0.5) * (1 << _SHIFT)).astype(np.int32) for contour in contours]


def _fill(contours: list[np.ndarray], width: int, height: int) -> np.ndarray:
    image = np.zeros((height, width), np.uint8)
    cv2.fillPoly(image, _fixed(contours), 255, cv2.LINE_AA, _SHIFT)
    return image.astype(np.float32) / 255


def _stroke(contours: list[np.ndarray], width: int, height: int, thickness: float) -> np.ndarray:
    image = np.zeros((height, width), np.uint8)
    cv2.polylines(image, _fixed(contours), True, 255, max(1, round(thickness)), cv2.LINE_AA, _SHIFT)
    return image.astype(np.float32) / 255


def _near(coverage: np.ndarray) -> np.ndarray:
    """Where an outline may show: everywhere on or next to the thing (a hollow one has no middle)."""
    return cv2.dilate(coverage, np.ones((3, 3), np.uint8))


def _tones(colour: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The colour itself, jittered, and a clearly lighter or darker tone of it for patterns."""
    first = np.clip(np.asarray(_RGB[colour], np.float32) + 0.16 * (rng.random(3, dtype=np.float32) - 0.5), 0, 1)
    first *= np.float32(0.85 + 0.2 * rng.random())
    brightness = float(first @ _LUMA)
    lighter = brightness < 0.3 or (brightness < 0.6 and rng.random() < 0.5)
    second = first + (1 - first) * 0.62 if lighter else first * 0.42
    return np.clip(first, 0, 1), second.astype(np.float32)


def _render(
    style: str, surface: np.ndarray, first: np.ndarray, u: np.ndarray, v: np.ndarray, region: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Surface colours in a style, and colour and weight of the outline (0: none)."""
    if style == "cartoon":
        return surface, np.full(3, 0.05, np.float32), 1.0
    if style == "sketch":
        hatch = 0.55 + 0.3 * np.sin(19 * (u + v))[..., None]
        return region + (surface - region) * hatch, first * 0.45, 0.9
    if style == "pastel":
        return 0.45 + 0.55 * surface, first, 0.0
    if style == "neon":
        return surface * 0.55, np.clip(first * 1.1 + 0.16, 0, 1), 1.0
    if style == "plastic":
        shine = np.exp(-14 * ((u + 0.3) ** 2 + (v + 0.4) ** 2))[..., None]
        return np.clip(surface * (1.08 - 0.3 * v[..., None]) + 0.8 * shine, 0, 1), first * 0.6, 0.5
    if style == "photo":
        return np.clip(surface * (1.0 - 0.22 * (u + v)[..., None]), 0, 1), first, 0.0
    return surface, first * 0.5, 0.6 if style == "painting" else 0.0


def _cast_shadow(region: np.ndarray, coverage: np.ndarray, length: float) -> None:
    shift = max(1, round(2 * length))
    shadow = np.zeros_like(coverage)
    shadow[shift:, shift:] = coverage[:-shift, :-shift]
    region *= (1 - 0.45 * cv2.blur(shadow, (3, 3)))[..., None]
