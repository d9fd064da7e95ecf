"""ShapeWorld's thing classes: every combination of a pattern, a colour and a shape, split into base and novel.

A class is named "{pattern} {colour} {shape}", for example "striped red star". The order of the classes, and with it
the split, comes from a keyed hash of the names and therefore does not depend on library versions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from prompt_pretrain.errors import InputError

PATTERNS = ("plain", "striped", "dotted", "checkered", "ringed", "zigzag", "wavy", "speckled", "hollow", "shaded")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SHAPES = (
    "circle", "square", "triangle", "diamond", "hexagon", "star", "heart", "cross", "arrow", "crescent",
    "ring", "drop", "cloud", "flower", "gear", "bolt", "leaf", "house", "fish", "mushroom",
)  # fmt: skip
NUM_CLASSES = len(PATTERNS) * len(COLOURS) * len(SHAPES)
NUM_BASE = 1600
SPLITS = ("base", "novel", "all")
WORLD_SEED = 0  # of the order and the split of the classes; the tiny CLIP has seen the base classes of this one

_TAIL_EXPONENT = 0.8
_TAIL_OFFSET = 20
_SCENE_TAIL_OFFSET = 5


@dataclass(frozen=True)
class Thing:
    """One thing class.

    Attributes:
        pattern, colour, shape: words of :data:`PATTERNS`, :data:`COLOURS` and :data:`SHAPES`.
    """

    pattern: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.colour} {self.shape}"

    @property
    def number(self) -> int:
        """Position among all combinations, 0 .. ``NUM_CLASSES`` - 1; the same in every world order."""
        row = PATTERNS.index(self.pattern) * len(COLOURS) + COLOURS.index(self.colour)
        return row * len(SHAPES) + SHAPES.index(self.shape)


def parse_thing(name: str) -> Thing:
    """The class that ``name`` denotes; underscores count as blanks.

    Raises:
        InputError: ``name`` is no class of ShapeWorld.
    """
    words = name.replace("_", " ").split()
    known = len(words) == 3 and words[0] in PATTERNS and words[1] in COLOURS and words[2] in SHAPES
    if not known:
        raise InputError(f"{name!r} is no ShapeWorld class; expected 'pattern colour shape' such as 'striped red star'")
    return Thing(*words)


def things(split: str = "base", seed: int = WORLD_SEED) -> tuple[Thing, ...]:
    """The classes of a split, in label order.

    Base classes are the first :data:`NUM_BASE` of all combinations in an order drawn by ``seed``, novel ones the
    rest; ``all`` is base followed by novel. With the default seed every attribute value and every pair of values of
    two attributes occurs among the base classes.

    Raises:
        InputError: an unknown split.
    """
    if split not in SPLITS:
        raise InputError(f"unknown ShapeWorld split {split!r}; choose one of {', '.join(SPLITS)}")
    everything = [Thing(p, c, s) for p in PATTERNS for c in COLOURS for s in SHAPES]
    order = tuple(sorted(everything, key=lambda thing: _hash(seed, "order", thing.name)))
    return {"base": order[:NUM_BASE], "novel": order[NUM_BASE:], "all": order}[split]


def class_names(split: str = "base", seed: int = WORLD_SEED) -> tuple[str, ...]:
    """Names of the classes of a split ("base", "novel" or "all"), in label order."""
    return tuple(thing.name for thing in things(split, seed))


def class_counts(classes: Sequence[Thing], images_per_class: int, *, seed: int = WORLD_SEED) -> tuple[int, ...]:
    """Number of training images of each class: a long tail whose mean is about ``images_per_class``.

    The class of frequency rank r (0 = most frequent) gets a share proportional to 1 / (r + 20)^0.8, at least two
    images. Ranks are drawn by ``seed`` independently of the label order.

    Raises:
        InputError: fewer than 2 images per class were asked for.
    """
    if images_per_class < 2:
        raise InputError(f"found {images_per_class} images per class, expected at least 2")
    by_rank = _by_frequency(classes, seed)
    weights = [(rank + _TAIL_OFFSET) ** -_TAIL_EXPONENT for rank in range(len(classes))]
    scale = images_per_class * len(classes) / sum(weights)
    counts = [0] * len(classes)
    for label, weight in zip(by_rank, weights, strict=True):
        counts[label] = max(2, round(weight * scale))
    return tuple(counts)


def tail_weights(classes: Sequence[Thing], *, seed: int = WORLD_SEED) -> tuple[float, ...]:
    """How often each class occurs in scenes: 1 / (r + 5)^0.8 at rank r, with the ranks of :func:`class_counts`."""
    weights = [0.0] * len(classes)
    for rank, label in enumerate(_by_frequency(classes, seed)):
        weights[label] = (rank + _SCENE_TAIL_OFFSET) ** -_TAIL_EXPONENT
    return tuple(weights)


def _by_frequency(classes: Sequence[Thing], seed: int) -> list[int]:
    return sorted(range(len(classes)), key=lambda label: _hash(seed, "frequency", classes[label].name))


def _hash(seed: int, purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
