"""Scenes: several things on two or three grounds, with what each pixel shows.

A scene is a function of (classes and weights, index, split, seed); its pixels of these and the size, whatever was
drawn before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.classes import Thing, tail_weights
from prompt_pretrain.shapeworld.drawing import STYLES, Box, draw_object, finish, style_ground
from prompt_pretrain.shapeworld.grounds import GROUNDS, ground_texture
from prompt_pretrain.shapeworld.images import STYLE_SHARES, generator, pick, spoil

SCENE_SPLITS = ("train", "val")
# Defects that leave small things recognisable.
_CONDITIONS = {"": 0.82, "blurry": 0.04, "dark": 0.05, "bright": 0.05, "hard to see": 0.04}
_ASPECTS = {(1.0, 0.75): 0.55, (0.75, 1.0): 0.25, (1.0, 1.0): 0.2}  # (width, height)
_COUNTS = (0.1, 0.2, 0.22, 0.2, 0.13, 0.09, 0.06)  # of 1, 2, … things
_CROWD_SHARE = 0.06
_STREAM = 100  # keeps the random numbers of scenes apart from those of single pictures
_PLAN, _GROUND, _EFFECT, _OBJECT = range(4)


@dataclass(frozen=True)
class ClassMix:
    """The classes that scenes show, by label, and how often.

    Attributes:
        things: classes in label order.
        weights: of each class, not normalised.
    """

    things: tuple[Thing, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class PlacedThing:
    """One thing of a scene. Lengths are in units of the longer side of the picture.

    Attributes:
        label: position in the mix.
        thing: its class.
        size: side of the square that it fits into.
        centre: x and y of that square's centre.
        crowd: it is a member of the scene's crowd, which is annotated as a whole.
        number: of its own random numbers.
    """

    label: int
    thing: Thing
    size: float
    centre: tuple[float, float]
    crowd: bool
    number: int

    @property
    def box(self) -> Box:
        (x, y), half = self.centre, self.size / 2
        return x - half, y - half, x + half, y + half


@dataclass(frozen=True)
class ScenePlan:
    """What a scene shows.

    Attributes:
        width, height: the longer one is 1.
        things: in the order in which they are painted: later ones hide earlier ones.
        grounds: two or three different words of ``GROUNDS``.
        style, condition: words of ``STYLES`` and ``images.CONDITION_SHARES``.
        key: seeds the random numbers of the pixels.
    """

    width: float
    height: float
    things: tuple[PlacedThing, ...]
    grounds: tuple[str, ...]
    style: str
    condition: str
    key: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """A painted scene.

    Attributes:
        plan: what it shows.
        pixels: (H, W, 3) uint8 RGB.
        ground_map: (H, W) uint8, position in ``plan.grounds`` of the ground at each pixel, also below things.
        thing_map: (H, W) uint8, 1 + position in ``plan.things`` of what is visible, 0 where that is a ground.
        areas: pixels of each thing within the picture before others hid some of them.
    """

    plan: ScenePlan
    pixels: np.ndarray
    ground_map: np.ndarray
    thing_map: np.ndarray
    areas: tuple[int, ...]


def class_mix(base: Sequence[Thing], novel: Sequence[Thing], split: str = "train") -> ClassMix:
    """Base classes and behind them novel ones.

    In "train" base classes have a long tail and novel ones are rarer than every base class. In "val" the tail is
    flatter and novel classes are as frequent as base classes on average, so that metrics of both mean something.

    Raises:
        InputError: an unknown split, or no class.
    """
    _check_split(split)
    if not base:
        raise InputError("scenes need at least one base class")
    weights = tail_weights(base)
    if split == "train":
        rare = 0.4 * min(weights)
    else:
        weights = tuple(weight**0.5 for weight in weights)
        rare = sum(weights) / len(weights)
    return ClassMix((*base, *novel), (*weights, *[rare] * len(novel)))


def plan_scene(index: int, mix: ClassMix, *, split: str = "train", seed: int = 0) -> ScenePlan:
    """Draw what scene ``index`` of a split shows.

    Raises:
        InputError: an unknown split.
    """
    _check_split(split)
    key = (seed, _STREAM + SCENE_SPLITS.index(split), index)
    rng = generator(*key, _PLAN)
    width, height = list(_ASPECTS)[pick(tuple(_ASPECTS.values()), rng.random())]
    style = STYLES[pick(STYLE_SHARES, rng.random())]
    condition = list(_CONDITIONS)[pick(tuple(_CONDITIONS.values()), rng.random())]
    order = np.argsort(rng.random(len(GROUNDS)))
    grounds = [GROUNDS[number] for number in order[: 2 if rng.random() < 0.5 else 3]]
    grounds.sort(key=lambda ground: ground != "sky")  # the first one is on top
    placed = _Placing(width, height, mix, rng).place()
    placed.sort(key=lambda thing: thing.box[3])  # who stands lower is nearer
    return ScenePlan(width, height, tuple(placed), tuple(grounds), style, condition, key)


def render_scene(plan: ScenePlan, size: int) -> Scene:
    """Paint a scene whose longer side has ``size`` pixels."""
    width, height = round(plan.width * size), round(plan.height * size)
    canvas, ground_map = _paint_grounds(plan, height, width)
    thing_map = np.zeros((height, width), np.uint8)
    areas = []
    for position, placed in enumerate(plan.things):
        x0, y0, x1, y1 = (coordinate * size for coordinate in placed.box)
        rng = generator(*plan.key, _OBJECT, placed.number)
        covered = draw_object(canvas, placed.thing, (x0, y0, x1, y1), rng, style=plan.style) >= 0.5
        thing_map[covered] = position + 1
        areas.append(int(covered.sum()))
    rng = generator(*plan.key, _EFFECT)
    # As long as the side of a picture that showed one of these things alone.
    reach = 1.3 * size * sum(placed.size for placed in plan.things) / len(plan.things)
    canvas = spoil(finish(canvas, plan.style, rng, reach=reach), plan.condition, rng, reach=reach)
    pixels = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(plan, pixels, ground_map, thing_map, tuple(areas))


class _Placing:
    """Puts things where they do not hide each other too much."""

    def __init__(self, width: float, height: float, mix: ClassMix, rng: np.random.Generator) -> None:
        self.width, self.height, self.mix, self.rng = width, height, mix, rng
        self.shares = tuple(np.asarray(mix.weights) / sum(mix.weights))
        self.overlap = 0.0 if rng.random() < 0.4 else 0.35  # share of the smaller one of two boxes
        self.placed: list[PlacedThing] = []
        self.taken: list[Box] = []

    def place(self) -> list[PlacedThing]:
        count = 1 + pick(_COUNTS, self.rng.random())
        largest = 0.55 if count <= 3 else 0.38
        label = 0
        for number in range(count):
            # Now and then another one of the same class.
            if number == 0 or self.rng.random() < 0.85:
                label = pick(self.shares, self.rng.random())
            size = 0.14 * (largest / 0.14) ** float(self.rng.random())
            box = self._free_box(size, sticks_out=self.rng.random() < 0.12)
            if box:
                self._add(label, box, crowd=False)
        if self.rng.random() < _CROWD_SHARE:
            self._place_crowd(pick(self.shares, self.rng.random()))
        return self.placed

    def _place_crowd(self, label: int) -> None:
        """Many small things of one class in three rows; the class has no other thing in the scene."""
        box = self._free_box(0.36, sticks_out=False)
        if not box or any(placed.label == label for placed in self.placed):
            return
        pitch = (box[2] - box[0]) / 3
        for cell in range(9):
            x, y = (box[axis] + pitch * (0.5 + step) for axis, step in enumerate((cell % 3, cell // 3)))
            x, y = (value + 0.25 * pitch * (float(self.rng.random()) - 0.5) for value in (x, y))
            half = 0.55 * pitch
            self._add(label, (x - half, y - half, x + half, y + half), crowd=True)

    def _add(self, label: int, box: Box, *, crowd: bool) -> None:
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        thing = self.mix.things[label]
        self.placed.append(PlacedThing(label, thing, box[2] - box[0], centre, crowd, len(self.placed)))
        self.taken.append(box)

    def _free_box(self, size: float, *, sticks_out: bool) -> Box | None:
        """A square where there is room, smaller if that is hard to find; None where there is none."""
        size = min(size, 0.85 * self.width, 0.85 * self.height)
        for _ in range(12):
            inside = (0.1 if sticks_out else 0.5) * size  # from the centre to the border of the picture at least
            x, y = (inside + (side - 2 * inside) * float(self.rng.random()) for side in (self.width, self.height))
            box = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
            if all(_overlap(box, other) <= self.overlap for other in self.taken):
                return box
            size = max(0.12, 0.92 * size)
        return None


def _overlap(one: Box, other: Box) -> float:
    """Common area of two squares as a share of the smaller one."""
    sides = [max(0.0, min(one[2 + i], other[2 + i]) - max(one[i], other[i])) for i in (0, 1)]
    return sides[0] * sides[1] / min(one[2] - one[0], other[2] - other[0]) ** 2


def _paint_grounds(plan: ScenePlan, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Textures of the grounds in their regions, (H, W, 3), and which one is where, (H, W) uint8."""
    rng = generator(*plan.key, _GROUND)
    ground_map = np.zeros((height, width), np.uint8)
    regions = _regions(height, width, len(plan.grounds), rng)
    canvas = np.zeros((height, width, 3), np.float32)
    for number, ground in enumerate(plan.grounds):
        textures = generator(*plan.key, _GROUND, number + 1)
        texture = _styled(ground_texture(ground, height, width, textures), plan.style)
        region = regions[number]
        canvas += (texture - canvas) * region[..., None]
        ground_map[region >= 0.5] = number
    return canvas, ground_map


def _styled(texture: np.ndarray, style: str) -> np.ndarray:
    styled = style_ground(texture, style)
    # A sketch leaves so little of a texture that two grounds side by side would look the same: tint the paper.
    return 0.6 * styled + 0.4 * (0.4 + 0.6 * texture) if style == "sketch" else styled


def _regions(height: int, width: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """(H, W) coverage of each region, each painted over the ones before.

    The first is everything, the second lies on one side of a line, the third beyond another line or it is a patch.
    """
    scale = max(height, width)
    x = (np.arange(width, dtype=np.float32)[None] + 0.5) / scale
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / scale
    angle = np.deg2rad(30 if rng.random() < 0.7 else 80) * (2 * rng.random() - 1)
    across = np.float32(np.sin(angle)) * (x - 0.5 * width / scale)
    down = across + np.float32(np.cos(angle)) * (y - 0.5 * height / scale)
    span = 0.5 * (abs(np.sin(angle)) * width + abs(np.cos(angle)) * height) / scale
    wobble = [_smooth(height, width, rng) for _ in range(2)]
    line = down + 0.05 * wobble[0] + span * (0.15 + 0.4 * rng.random())
    if rng.random() < 0.5:
        last = down + 0.05 * wobble[1] - span * (0.2 + 0.3 * rng.random())
    else:
        radius = 0.16 + 0.12 * rng.random(2)
        centre = np.array([width, height]) / scale * (0.25 + 0.5 * rng.random(2))
        away = np.hypot((x - centre[0]) / radius[0], (y - centre[1]) / radius[1])
        last = radius.min() * (1 - away + 0.25 * wobble[1])
    fields = [np.ones((height, width), np.float32), line, last]
    return [np.clip(field * scale + 0.5, 0, 1).astype(np.float32) for field in fields[:count]]


def _smooth(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    lattice = 2 * rng.random((6, 6), dtype=np.float32) - 1
    return cv2.resize(lattice, (width, height), interpolation=cv2.INTER_CUBIC)


def _check_split(split: str) -> None:
    if split not in SCENE_SPLITS:
        raise InputError(f"unknown split of scenes {split!r}; choose one of {', '.join(SCENE_SPLITS)}")
