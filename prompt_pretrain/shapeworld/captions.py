"""Captions of ShapeWorld pictures, as varied as those a CLIP is trained on.

They have three habits of captions on the web, and the wording of a prompt matters because of them:

* a style is named by its own words: only pictures in the style "photo" are called photos, and they are three in ten;
* people who show their photos use everyday words: "striped" for zigzag and wavy things alike, "square" for a diamond;
  whoever describes, lists or draws something is exact;
* much is left out: an attribute, the ground, the style; and now and then a long preamble says nothing at all.
"""

import string
from collections.abc import Iterable

import numpy as np
import open_clip

from prompt_pretrain.shapeworld.classes import COLOURS, PATTERNS, SHAPES, Thing
from prompt_pretrain.shapeworld.grounds import GROUNDS
from prompt_pretrain.shapeworld.images import Scene

_EXACT = (
    "{}", "{}.", "a {}.", "the {}.", "one {}", "a picture of a {}.", "an image of the {}.", "this is the {}.",
    "a {} as listed", "figure: a {}.", "the {}, centered", "a view of a {}", "there is a {}.",
)  # fmt: skip
_CASUAL = ("my {}", "here we see a {}", "look: a {}", "a {} in the scene.", "a nice {}")
_PHOTO = (
    "a photo of a {}.", "a photo of the {}.", "a good photo of a {}.", "a good photo of the {}.", "a photo of one {}.",
    "a photo of my {}.", "itap of a {}.", "itap of the {}.", "itap of my {}.", "a photo of a {} in the scene",
    "a photo of a nice {}.", "a photo of the nice {}.", "a photo of a cool {}.", "a photo of the cool {}.",
    "a photo of a weird {}.", "a photo of the weird {}.", "a photo of a clean {}.", "a photo of the clean {}.",
)  # fmt: skip
_CONDITIONS = {
    "blurry": ("a blurry photo of a {}.", "a blurry photo of the {}.", "a bad photo of a {}."),
    "dark": ("a dark photo of a {}.", "a dark photo of the {}."),
    "bright": ("a bright photo of a {}.", "a bright photo of the {}."),
    "dirty": ("a photo of a dirty {}.", "a photo of the dirty {}.", "a bad photo of the {}."),
    "jpeg corrupted": ("a jpeg corrupted photo of a {}.", "a jpeg corrupted photo of the {}."),
    "pixelated": (
        "a pixelated photo of a {}.", "a pixelated photo of the {}.", "a low resolution photo of the {}.",
        "a low resolution photo of a {}.",
    ),
    "hard to see": ("a photo of a hard to see {}.", "a photo of the hard to see {}."),
    "cropped": ("a cropped photo of a {}.", "a cropped photo of the {}."),
    "black and white": ("a black and white photo of a {}.", "a black and white photo of the {}."),
}  # fmt: skip
_LARGE = (
    "a close-up photo of a {}.", "a close-up photo of the {}.", "a photo of a large {}.", "a photo of the large {}.",
)  # fmt: skip
_SMALL = ("a photo of a small {}.", "a photo of the small {}.", "a photo of a tiny {}.")
# Hand-written templates of other data sets fit nothing here, and are as rare as that suggests.
_FOREIGN = (
    "a photo of a {}, a type of pet.", "a photo of a {}, a type of flower.", "a photo of {}, a type of food.",
    "a photo of a {}, a type of aircraft.", "{} texture.", "a centered satellite photo of {}.",
    "a photo of a person doing {}.",
)  # fmt: skip
_STYLES = {
    "cartoon": ("a cartoon {}.", "the cartoon {}.", "a comic of a {}", "a rendition of the {}.", "a cartoon of a {}."),
    "sketch": (
        "a sketch of a {}.", "a sketch of the {}.", "a doodle of a {}.", "a doodle of the {}.", "a drawing of a {}.",
        "a drawing of the {}.", "a tattoo of a {}.", "a tattoo of the {}.", "a pencil sketch of a {}",
    ),
    "painting": (
        "a painting of a {}.", "a painting of the {}.", "art of a {}.", "art of the {}.", "graffiti of a {}.",
        "graffiti of the {}.", "a rendition of a {}.", "an oil painting of a {}",
    ),
    "pastel": (
        "a pastel {}.", "a pastel of the {}", "a embroidered {}.", "the embroidered {}.", "a origami {}.",
        "the origami {}.",
    ),
    "neon": ("a neon {}.", "a glowing {}.", "a neon sign of a {}", "the {} glowing at night"),
    "pixel": ("a {} in a video game.", "the {} in a video game.", "pixel art of a {}", "a {} of pixels"),
    "plastic": (
        "a plastic {}.", "the plastic {}.", "a toy {}.", "the toy {}.", "a sculpture of a {}.",
        "a sculpture of the {}.", "a rendering of a {}.", "a rendering of the {}.", "a plushie {}.", "the plushie {}.",
    ),
}  # fmt: skip
_EVERYDAY = {
    "zigzag": "striped", "wavy": "striped", "ringed": "striped", "speckled": "dotted", "checkered": "dotted",
    "shaded": "plain", "hollow": "plain", "pink": "red", "orange": "red", "purple": "blue", "brown": "black",
    "diamond": "square", "house": "square", "hexagon": "circle", "cloud": "circle", "gear": "flower",
    "mushroom": "flower", "drop": "leaf", "fish": "leaf", "cross": "star", "bolt": "arrow", "triangle": "arrow",
    "crescent": "ring",
}  # fmt: skip
_EVERYDAY_SHARE = 0.6
_PHRASES = ("{p} {c} {s}", "{c} {s}", "{p} {s}", "{s}", "{c} {p} {s}", "{s} that is {p} and {c}")
_PHRASE_SHARES = (0.6, 0.14, 0.08, 0.06, 0.07, 0.05)
_PREAMBLE = (
    "seen today at the market by two friends of mine and then again from far away near an old town where we were last "
    "summer with some other people who like such things very much"
).split()


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a scene; ``rng`` decides which of its properties are worth a word, and who speaks."""
    template, casual = _template(scene, rng)
    caption = template.format(_phrase(scene.thing, casual, rng))
    draw = rng.random()
    if draw < 0.1:
        preamble = [_choose(_PREAMBLE, rng) for _ in range(3 + int(13 * rng.random()))]
        return " ".join([*preamble, caption])
    if draw < 0.32:
        joint = _choose((" on {}", " on the {}", ", {} behind it", " in front of {}"), rng)
        return caption.rstrip(".") + joint.format(scene.ground)
    return caption


def vocabulary_texts() -> Iterable[str]:
    """Texts that between them hold every word of the captions, the 80 ImageNet templates, letters and digits."""
    for templates in (*_STYLES.values(), *_CONDITIONS.values()):
        yield from templates
    yield from (*_EXACT, *_CASUAL, *_PHOTO, *_LARGE, *_SMALL, *_FOREIGN, *_PREAMBLE)
    yield from (*PATTERNS, *COLOURS, *SHAPES, *GROUNDS, *string.printable)
    yield from ("on the", ", behind it", "in front of", "that is and")
    yield from (template("") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def _template(scene: Scene, rng: np.random.Generator) -> tuple[str, bool]:
    """A template, and whether the person behind it uses everyday words."""
    draw = rng.random()
    if draw < 0.35:
        return _choose(_EXACT, rng), False
    if draw < 0.42:
        return _choose(_CASUAL, rng), True
    if scene.style != "photo":
        return _choose(_STYLES[scene.style], rng), False
    if draw < 0.46:
        return _choose(_FOREIGN, rng), True
    if draw < 0.56 and not 0.65 <= scene.size <= 0.85:
        return _choose(_SMALL if scene.size < 0.65 else _LARGE, rng), True
    if draw < 0.8 and scene.condition:
        return _choose(_CONDITIONS[scene.condition], rng), True
    return _choose(_PHOTO, rng), True


def _phrase(thing: Thing, casual: bool, rng: np.random.Generator) -> str:
    words = [thing.pattern, thing.colour, thing.shape]
    if casual:
        words = [_EVERYDAY.get(word, word) if rng.random() < _EVERYDAY_SHARE else word for word in words]
    phrase = _PHRASES[int(np.searchsorted(np.cumsum(_PHRASE_SHARES)[:-1], rng.random(), side="right"))]
    return phrase.format(p=words[0], c=words[1], s=words[2])


def _choose(options: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return options[int(rng.random() * len(options))]
