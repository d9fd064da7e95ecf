"""One picture of one class: which ground, style, pose and defects it has, and its pixels.

A picture is a function of (class, index, split, seed, style, size) alone, whatever was drawn before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.classes import Thing
from prompt_pretrain.shapeworld.drawing import STYLES, draw_object, finish, style_ground
from prompt_pretrain.shapeworld.grounds import GROUNDS, ground_texture

IMAGE_SPLITS = ("train", "val", "clip")  # "clip": the pictures that the tiny CLIP is trained on
STYLE_SHARES = (0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)  # in the order of STYLES
CONDITION_SHARES = {
    "": 0.64,
    "blurry": 0.05,
    "dark": 0.06,
    "bright": 0.06,
    "dirty": 0.05,
    "jpeg corrupted": 0.04,
    "pixelated": 0.03,
    "hard to see": 0.03,
    "cropped": 0.03,
    "black and white": 0.01,
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        thing: the class.
        ground, style, condition: words of ``GROUNDS``, ``STYLES`` and ``CONDITION_SHARES`` ("" = no defect).
        size: side of the thing's box as a share of the picture's side.
        centre: x and y of that box's centre as shares of the picture.
        key: seeds the random numbers of the pixels.
    """

    thing: Thing
    ground: str
    style: str
    condition: str
    size: float
    centre: tuple[float, float]
    key: tuple[int, ...]


def plan_scene(thing: Thing, index: int, *, split: str = "train", seed: int = 0, style: str | None = None) -> Scene:
    """Draw what picture ``index`` of a class shows.

    Args:
        split: "train" and "val" for data sets, "clip" for the tiny CLIP; their pictures never coincide.
        style: fixes the rendering style; everything else stays as it is.
    Raises:
        InputError: an unknown split or style.
    """
    if split not in IMAGE_SPLITS:
        raise InputError(f"unknown image split {split!r}; choose one of {', '.join(IMAGE_SPLITS)}")
    if style is not None and style not in STYLES:
        raise InputError(f"unknown ShapeWorld style {style!r}; choose one of {', '.join(STYLES)}")
    key = (seed, IMAGE_SPLITS.index(split), thing.number, index)
    rng = generator(*key, 0)
    drawn_style = STYLES[pick(STYLE_SHARES, rng.random())]
    condition = list(CONDITION_SHARES)[pick(tuple(CONDITION_SHARES.values()), rng.random())]
    ground = GROUNDS[int(rng.random() * len(GROUNDS))]
    size = 0.55 + 0.4 * float(rng.random())
    free = 1.0 - size if condition != "cropped" else 0.3
    x, y = (0.5 + free * (float(rng.random()) - 0.5) for _ in range(2))
    if condition == "cropped":  # push one side out of the picture
        x += 0.32 if rng.random() < 0.5 else -0.32
    return Scene(thing, ground, style or drawn_style, condition, size, (x, y), key)


def render_scene(scene: Scene, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The picture of a scene as (size, size, 3) uint8 RGB, and its thing's (size, size) float32 coverage."""
    rng = generator(*scene.key, 1)
    canvas = style_ground(ground_texture(scene.ground, size, size, rng), scene.style)
    half = scene.size * size / 2
    x, y = scene.centre[0] * size, scene.centre[1] * size
    mask = draw_object(canvas, scene.thing, (x - half, y - half, x + half, y + half), rng, style=scene.style)
    canvas = spoil(finish(canvas, scene.style, rng), scene.condition, rng)
    pixels = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return (_through_jpeg(pixels) if scene.condition == "jpeg corrupted" else pixels), mask


def render_image(
    thing: Thing, index: int, *, split: str = "train", seed: int = 0, style: str | None = None, size: int = 64
) -> np.ndarray:
    """Picture ``index`` of a class as (size, size, 3) uint8 RGB; see :func:`plan_scene` for the arguments."""
    return render_scene(plan_scene(thing, index, split=split, seed=seed, style=style), size)[0]


def generator(*key: int) -> np.random.Generator:
    """Random numbers that belong to a key and are the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def pick(shares: Sequence[float], draw: float) -> int:
    """Which of the shares, laid side by side, ``draw`` in [0, 1) falls into."""
    return min(int(np.searchsorted(np.cumsum(shares), draw, side="right")), len(shares) - 1)


def spoil(canvas: np.ndarray, condition: str, rng: np.random.Generator, *, reach: float | None = None) -> np.ndarray:
    """Apply a picture's defect to (H, W, 3) float32.

    Args:
        condition: a word of :data:`CONDITION_SHARES`; "cropped" and "jpeg corrupted" do nothing here.
        reach: length in pixels that blur is in proportion to; default: the picture's width.
    """
    height, width = canvas.shape[:2]
    if condition == "blurry":
        return cv2.GaussianBlur(canvas, (0, 0), (reach or width) / 45)
    if condition == "dark":
        return canvas * np.float32(0.4)
    if condition == "bright":
        return canvas * 0.75 + 0.38
    if condition == "dirty":
        dirt = cv2.resize(rng.random((7, 7), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        return canvas * (1 - 0.65 * (dirt > 0.76))[..., None] + 0.06 * (dirt > 0.76)[..., None]
    if condition == "pixelated":
        small = cv2.resize(canvas, (width // 3, height // 3), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    if condition == "hard to see":
        return canvas * 0.42 + 0.3
    if condition == "black and white":
        return np.repeat((canvas @ np.array([0.3, 0.59, 0.11], np.float32))[..., None], 3, axis=2)
    return canvas


def _through_jpeg(pixels: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 9])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1])
