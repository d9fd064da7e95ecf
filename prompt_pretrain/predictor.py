"""The way from anything that shows pictures to one result per image, for models that take images in batches."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from prompt_pretrain.classification.decoding import ImageError
from prompt_pretrain.errors import InputError
from prompt_pretrain.image_inputs import ImageInput
from prompt_pretrain.size_buckets import Indexed, SizeBuckets

__all__ = ["Predictor", "padded_size"]
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result", bound=Indexed)


class Predictor(ABC, Generic[_Result]):
    """Runs a model on a stream of images, in batches of images that need the same padding.

    Attributes:
        class_names: what the model looks for; empty where nobody has said.
        longest_side: of a resized image in pixels; 0 for any.
    """

    class_names: tuple[str, ...]
    longest_side: int

    @abstractmethod
    def prepare(self, image: ImageInput, index: int) -> dict[str, Any]:
        """The model's input for one image, with its "image" (3, H, W) still on the CPU and its "index"."""

    @abstractmethod
    def padded_size(self, image: Tensor) -> tuple[int, int]:
        """Height and width to which the model pads an image."""

    @abstractmethod
    def run(self, entries: Sequence[dict[str, Any]]) -> list[_Result]:
        """One result per entry of a batch."""

    def results(
        self, images: Iterator[ImageInput | ImageError], *, batch_size: int, skip_bad: bool
    ) -> Iterator[_Result]:
        """One result per image, in their order.

        Args:
            batch_size: images per step of the model at most.
            skip_bad: leave out images that cannot be used, with a warning, instead of raising.
        Raises:
            InputError: no classes, a batch size below 1, an image that cannot be used.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, found {batch_size}")
        if not self.class_names:
            raise InputError("this model does not know its classes; call set_classes first")
        buckets = SizeBuckets(self.run, batch_size)
        for index, image in enumerate(images):
            image = self._usable(image)
            if isinstance(image, ImageError):
                if not skip_bad:
                    raise image
                _log.warning("left out: %s", image)
                continue
            entry = self.prepare(image, index)
            yield from buckets.add(entry, self.padded_size(entry["image"]))
        yield from buckets.flush()

    def _usable(self, image: ImageInput | ImageError) -> ImageInput | ImageError:
        """The image, or the error of one that would lose all pixels when it is resized."""
        if isinstance(image, ImageError) or not self.longest_side:
            return image
        height, width = image.pixels.shape[:2]
        if min(height, width) * self.longest_side >= max(height, width):
            return image
        return ImageError(
            image.source,
            f"{width} x {height} pixels are too elongated for images of {self.longest_side} pixels; crop it",
        )


def padded_size(image: Tensor, unit: int) -> tuple[int, int]:
    """Height and width of an image (…, H, W), rounded up to multiples of ``unit``; below 1 it counts as 1."""
    unit = max(unit, 1)
    height, width = (-(-side // unit) * unit for side in image.shape[-2:])
    return height, width
