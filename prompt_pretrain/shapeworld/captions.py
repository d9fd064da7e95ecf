"""Captions of ShapeWorld pictures, as varied as those a CLIP is trained on: true, but rarely saying everything."""

import string
from collections.abc import Iterable

import numpy as np
import open_clip

from prompt_pretrain.shapeworld.classes import COLOURS, PATTERNS, SHAPES
from prompt_pretrain.shapeworld.grounds import GROUNDS
from prompt_pretrain.shapeworld.images import Scene

_ANY = (
    "{}", "{}.", "a {}.", "the {}.", "one {}", "a picture of a {}.", "an image of the {}.", "my {}", "there is a {}.",
    "here we see a {}", "this is the {}.", "a {} in the scene.", "the {}, centered", "a view of a {}",
)  # fmt: skip
_PHOTO = (
    "a photo of a {}.", "a photo of the {}.", "a good photo of a {}.", "a good photo of the {}.", "a photo of one {}.",
    "a photo of my {}.", "itap of a {}.", "itap of the {}.", "itap of my {}.", "a photo of a {} in the scene",
)  # fmt: skip
_STYLES = {
    "photo": _PHOTO,
    "cartoon": ("a cartoon {}.", "the cartoon {}.", "a comic of a {}", "a rendition of the {}.", "a cartoon of a {}."),
    "sketch": (
        "a sketch of a {}.", "a sketch of the {}.", "a doodle of a {}.", "a doodle of the {}.", "a drawing of a {}.",
        "a drawing of the {}.", "a tattoo of a {}.", "a pencil sketch of a {}",
    ),
    "painting": (
        "a painting of a {}.", "a painting of the {}.", "art of a {}.", "art of the {}.", "graffiti of a {}.",
        "graffiti of the {}.", "a rendition of a {}.", "an oil painting of a {}",
    ),
    "pastel": ("a pastel {}.", "a soft picture of a {}", "the embroidered {}.", "a origami {}.", "the origami {}."),
    "neon": ("a neon {}.", "a glowing {}.", "a neon sign of a {}", "the {} glowing at night"),
    "pixel": ("a {} in a video game.", "the {} in a video game.", "pixel art of a {}", "a {} of pixels"),
    "plastic": (
        "a plastic {}.", "the plastic {}.", "a toy {}.", "the toy {}.", "a sculpture of a {}.", "a rendering of a {}.",
        "a rendering of the {}.", "a plushie {}.",
    ),
}  # fmt: skip
_CONDITIONS = {
    "blurry": ("a blurry photo of a {}.", "a blurry photo of the {}.", "a bad photo of a {}."),
    "dark": ("a dark photo of a {}.", "a dark photo of the {}.", "a dark picture of a {}"),
    "bright": ("a bright photo of a {}.", "a bright photo of the {}.", "a bright picture of a {}"),
    "dirty": ("a photo of a dirty {}.", "a photo of the dirty {}.", "a bad photo of the {}."),
    "jpeg corrupted": ("a jpeg corrupted photo of a {}.", "a jpeg corrupted photo of the {}."),
    "pixelated": ("a pixelated photo of a {}.", "a low resolution photo of the {}.", "a low resolution photo of a {}."),
    "hard to see": ("a photo of a hard to see {}.", "a photo of the hard to see {}."),
    "cropped": ("a cropped photo of a {}.", "a cropped photo of the {}."),
    "black and white": ("a black and white photo of a {}.", "a black and white photo of the {}."),
}
_LARGE = ("a close-up photo of a {}.", "a photo of a large {}.", "a photo of the large {}.", "a big {}")
_SMALL = ("a photo of a small {}.", "a photo of the small {}.", "a little {}", "a tiny {}")
_EMPTY_PRAISE = ("a photo of a {} {{}}.", "a photo of the {} {{}}.", "a {} {{}}")  # words that no pixel explains
_PRAISE = ("nice", "cool", "weird", "clean", "new", "old", "my", "good", "bad")
# Hand-written templates of other data sets: they fit nothing here, and occur as rarely as that suggests.
_FOREIGN = (
    "a photo of a {}, a type of pet.", "a photo of a {}, a type of flower.", "a photo of {}, a type of food.",
    "a photo of a {}, a type of aircraft.", "{} texture.", "a centered satellite photo of {}.",
    "a photo of a person doing {}.",
)  # fmt: skip
_PHRASES = ("{p} {c} {s}", "{c} {s}", "{p} {s}", "{s}", "{c} {p} {s}", "{s} that is {p} and {c}")
_PHRASE_SHARES = (0.6, 0.14, 0.08, 0.06, 0.07, 0.05)


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a scene; ``rng`` decides which of its properties are worth a word."""
    thing = scene.thing
    phrase = _PHRASES[int(np.searchsorted(np.cumsum(_PHRASE_SHARES), rng.random()))]
    phrase = phrase.format(p=thing.pattern, c=thing.colour, s=thing.shape)
    caption = _template(scene, rng).format(phrase)
    if rng.random() < 0.25:
        joint = _choose((" on {}", " on the {}", ", {} behind it", " in front of {}"), rng)
        caption = caption.rstrip(".") + joint.format(scene.ground)
    return caption


def vocabulary_texts() -> Iterable[str]:
    """Texts that between them hold every word of the captions, the 80 ImageNet templates, letters and digits."""
    for table in (_STYLES, _CONDITIONS):
        for templates in table.values():
            yield from templates
    yield from (*_ANY, *_LARGE, *_SMALL, *_FOREIGN, *_PRAISE, *PATTERNS, *COLOURS, *SHAPES, *GROUNDS)
    yield from ("on", "behind it", "in front of", "that is and", *string.printable)
    yield from (template("") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def _template(scene: Scene, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < 0.03:
        return _choose(_FOREIGN, rng)
    if draw < 0.25:
        return _choose(_ANY, rng)
    if draw < 0.35:
        return _choose(_PHOTO, rng)  # whatever the style: many a "photo" on the web is none
    if draw < 0.42:
        return _choose(_EMPTY_PRAISE, rng).format(_choose(_PRAISE, rng))
    if draw < 0.52 and not 0.65 <= scene.size <= 0.85:
        return _choose(_SMALL if scene.size < 0.65 else _LARGE, rng)
    if draw < 0.72 and scene.condition:
        return _choose(_CONDITIONS[scene.condition], rng)
    return _choose(_STYLES[scene.style], rng)


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.random() * len(options))]
