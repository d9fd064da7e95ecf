"""Image transforms whose random numbers come from a generator that the caller passes in."""

import difflib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prompt_pretrain.classification.randaugment import RandAugment2
from prompt_pretrain.errors import InputError

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
_CROP_SCALE = (0.08, 1.0)
TRAIN_TRANSFORMS = ("random_resized_crop", "random_flip", "randaugment2", "normalize")

Step = Callable[[Image.Image, torch.Generator], Image.Image]


class ImageTransform:
    """Image steps, then a float tensor in [0, 1], then normalisation.

    Attributes:
        key: identifies what is computed; equal keys mean equal results for equal images and generators.
        size: S, side of the result.
        random: whether the generator matters.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        *,
        size: int,
        key: str,
        random: bool,
    ) -> None:
        self.steps = tuple(steps)
        self.mean = None if mean is None else torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1)
        self.std = None if std is None else torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1)
        self.size = size
        self.key = key
        self.random = random

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """(3, S, S) float32 of an RGB ``image``; random numbers come from ``generator`` only."""
        for step in self.steps:
            image = step(image, generator)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
        if self.mean is None or self.std is None:
            return pixels
        return pixels.sub_(self.mean).div_(self.std)


def train_transform(
    names: Sequence[str],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    randaugment_n: int = 2,
    interpolation: str = "bicubic",
    crop_scale: tuple[float, float] = _CROP_SCALE,
) -> ImageTransform:
    """The training transform made of the steps in ``names``, always in the published order.

    The order is random_resized_crop, random_flip, randaugment2, normalize. Without the crop, images are resized
    to exactly ``size`` x ``size``.

    Args:
        names: ``INPUT.TRANSFORMS``, any of ``TRAIN_TRANSFORMS``.
        randaugment_n: operations that randaugment2 draws per image.
        crop_scale: ``INPUT.CROP_SCALE``, shares of the area that random_resized_crop takes.

    Raises:
        InputError: an unknown name or interpolation, or a size below 1.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in TRAIN_TRANSFORMS:
            raise InputError(f"unknown entry {name!r} in INPUT.TRANSFORMS{_hint(name, TRAIN_TRANSFORMS)}")
    resample = _check(size, interpolation)
    crop = "random_resized_crop" in names
    scale = (crop_scale[0], crop_scale[1])  # YAML gives lists
    steps: list[Step] = [RandomResizedCrop(size, resample, scale) if crop else ResizeExactly(size, resample)]
    if "random_flip" in names:
        steps.append(random_flip)
    if "randaugment2" in names:
        steps.append(RandAugment2(randaugment_n))
    normalised = "normalize" in names
    used = [name for name in TRAIN_TRANSFORMS if name in names]
    if "randaugment2" in used:
        used[used.index("randaugment2")] = f"randaugment2({randaugment_n})"
    if crop and scale != _CROP_SCALE:
        used[used.index("random_resized_crop")] = f"random_resized_crop({scale[0]:g},{scale[1]:g})"
    random = any(name != "normalize" for name in names)
    used_mean, used_std = (mean, std) if normalised else (None, None)
    key = _key("train1", used, size, interpolation, used_mean, used_std)
    return ImageTransform(steps, used_mean, used_std, size=size, key=key, random=random)


def eval_transform(
    size: int, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic"
) -> ImageTransform:
    """The test transform: shorter side to ``size``, centre crop, normalise. Ignores the generator.

    Raises:
        InputError: an unknown interpolation, or a size below 1.
    """
    steps: list[Step] = [ResizeShorterSide(size, _check(size, interpolation)), CentreCrop(size)]
    key = _key("eval1", [], size, interpolation, mean, std)
    return ImageTransform(steps, mean, std, size=size, key=key, random=False)


class RandomResizedCrop:
    """A random part of the image (by default 8 to 100 % of its area, aspect ratio 3/4 to 4/3), resized to a square."""

    def __init__(
        self,
        size: int,
        resample: Image.Resampling,
        scale: tuple[float, float] = _CROP_SCALE,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size, self.resample, self.scale, self.ratio = size, resample, scale, ratio

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        left, top, width, height = self.box(image.width, image.height, generator)
        return image.crop((left, top, left + width, top + height)).resize((self.size, self.size), self.resample)

    def box(self, width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """(left, top, width, height) of the part: the first of ten draws that fits, else the largest centred one."""
        for draw in torch.rand(10, 4, generator=generator, dtype=torch.float64).tolist():
            area = width * height * _between(draw[0], *self.scale)
            ratio = math.exp(_between(draw[1], math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(draw[2] * (width - w + 1)), int(draw[3] * (height - h + 1)), w, h
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return (width - w) // 2, (height - h) // 2, w, h


def random_flip(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Mirror the image left to right with probability one half."""
    if torch.rand((), generator=generator).item() < 0.5:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


class ResizeExactly:
    """Resize to a square, whatever the aspect ratio."""

    def __init__(self, size: int, resample: Image.Resampling) -> None:
        self.size, self.resample = size, resample

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        return image.resize((self.size, self.size), self.resample)


class ResizeShorterSide:
    """Resize so that the shorter side gets ``size`` pixels; the longer one is rounded down."""

    def __init__(self, size: int, resample: Image.Resampling) -> None:
        self.size, self.resample = size, resample

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        short, long = sorted(image.size)
        if short == self.size:
            return image
        other = int(self.size * long / short)
        size = (self.size, other) if image.width <= image.height else (other, self.size)
        return image.resize(size, self.resample)


class CentreCrop:
    """Cut the central square out of an image that is at least that large."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))


def _between(u: float, low: float, high: float) -> float:
    return low + u * (high - low)


def _check(size: int, interpolation: str) -> Image.Resampling:
    if size < 1:
        raise InputError(f"INPUT.SIZE must be at least 1, got {size}")
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"unknown INPUT.INTERPOLATION {interpolation!r}{_hint(interpolation, INTERPOLATIONS)}")
    return INTERPOLATIONS[interpolation]


def _hint(given: str, known: Sequence[str] | dict) -> str:
    nearest = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; expected one of {', '.join(known)}"


def _key(
    version: str,
    names: Sequence[str],
    size: int,
    interpolation: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> str:
    numbers = ["none" if v is None else ",".join(f"{x:.8g}" for x in v) for v in (mean, std)]
    return f"{version}[{'+'.join(names)}] size={size} {interpolation} mean={numbers[0]} std={numbers[1]}"
