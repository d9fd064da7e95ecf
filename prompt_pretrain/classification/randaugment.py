"""``randaugment2``: a few random colour and geometry changes per image, as POMP's random-augment runs use it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image, ImageEnhance, ImageOps

PROBABILITY = 0.6  # of applying an operation once it is drawn


class Operation(NamedTuple):
    """One entry of the table: ``apply(image, v)`` with v uniform in [low, high], and whether v's sign is tossed."""

    name: str
    apply: Callable[[Image.Image, float], Image.Image]
    low: float = 0.0
    high: float = 0.0
    signed: bool = False


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.NEAREST)


def _posterize(image: Image.Image, v: float) -> Image.Image:
    return ImageOps.posterize(image, int(v))


def _solarize(image: Image.Image, v: float) -> Image.Image:
    # Pixels of at least v are inverted; PIL compares with the same "<".
    return ImageOps.solarize(image, v)  # type: ignore[arg-type]


def _rotate(image: Image.Image, v: float) -> Image.Image:
    return image.rotate(v, resample=Image.Resampling.NEAREST)


OPERATIONS: tuple[Operation, ...] = (
    Operation("AutoContrast", lambda image, v: ImageOps.autocontrast(image)),
    Operation("Brightness", lambda image, v: ImageEnhance.Brightness(image).enhance(v), 0.1, 1.9),
    Operation("Color", lambda image, v: ImageEnhance.Color(image).enhance(v), 0.1, 1.9),
    Operation("Contrast", lambda image, v: ImageEnhance.Contrast(image).enhance(v), 0.1, 1.9),
    Operation("Equalize", lambda image, v: ImageOps.equalize(image)),
    Operation("Identity", lambda image, v: image),
    Operation("Invert", lambda image, v: ImageOps.invert(image)),
    Operation("Posterize", _posterize, 4, 8),
    Operation("Rotate", _rotate, -30, 30, signed=True),
    Operation("Sharpness", lambda image, v: ImageEnhance.Sharpness(image).enhance(v), 0.1, 1.9),
    Operation("ShearX", lambda image, v: _affine(image, 1, v, 0, 0, 1, 0), -0.3, 0.3, signed=True),
    Operation("ShearY", lambda image, v: _affine(image, 1, 0, 0, v, 1, 0), -0.3, 0.3, signed=True),
    Operation("Solarize", _solarize, 0, 256),
    Operation("TranslateX", lambda image, v: _affine(image, 1, 0, v * image.width, 0, 1, 0), -0.3, 0.3, signed=True),
    Operation("TranslateY", lambda image, v: _affine(image, 1, 0, 0, 0, 1, v * image.height), -0.3, 0.3, signed=True),
)


class RandAugment2:
    """Draw ``n`` operations with replacement and apply each with probability 0.6.

    Geometric operations use nearest sampling and fill with black.
    """

    def __init__(self, n: int = 2) -> None:
        self.n = n

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        # Always four numbers per operation, so that what one operation needs never shifts the next one's numbers.
        for which, chance, u, sign in torch.rand(self.n, 4, generator=generator, dtype=torch.float64).tolist():
            operation = OPERATIONS[int(which * len(OPERATIONS))]
            if chance >= PROBABILITY:
                continue
            v = operation.low + u * (operation.high - operation.low)
            image = operation.apply(image, -v if operation.signed and sign < 0.5 else v)
        return image
