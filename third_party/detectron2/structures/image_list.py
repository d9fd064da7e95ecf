"""A batch of images of different sizes in one padded tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class ImageList:
    """Images padded on the right and bottom to one size.

    Attributes:
        tensor: (N, H, W) or (N, C, H, W) padded images.
        image_sizes: (height, width) of each image without its padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Image ``idx`` without its padding."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """The same images after ``tensor.to(...)``."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to the largest height and width among them.

        Args:
            tensors: images (..., H, W) that agree in all but the last two dimensions.
            size_divisibility: if above 1, height and width are rounded up to multiples of it.
            pad_value: what to pad with.
            padding_constraints: may hold ``square_size`` (if positive, height and width become this before rounding)
                and ``size_divisibility`` (replaces the argument).
        Raises:
            ValueError: an image is larger than ``square_size``.
        """
        assert len(tensors) > 0, "ImageList.from_tensors needs at least one image"
        assert isinstance(tensors, (list, tuple)), f"expected a list of images, got {type(tensors).__name__}"
        leading = tensors[0].shape[:-2]
        for image in tensors:
            assert isinstance(image, Tensor), f"expected tensors, got {type(image).__name__}"
            assert image.shape[:-2] == leading, f"images of shapes {tuple(tensors[0].shape)} and {tuple(image.shape)}"
        image_sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = (max(sides) for sides in zip(*image_sizes, strict=True))

        constraints = padding_constraints or {}
        square = constraints.get("square_size", 0)
        if square > 0:
            if max(height, width) > square:
                raise ValueError(
                    f"an image of {height} x {width} (largest sides of the batch) does not fit into square_size "
                    f"{square}; lower INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST to at most {square}"
                )
            height = width = square
        divisor = constraints.get("size_divisibility", size_divisibility)
        if divisor > 1:
            height, width = (-(-side // divisor) * divisor for side in (height, width))

        batch = tensors[0].new_full((len(tensors), *leading, height, width), pad_value)
        for padded, image in zip(batch, tensors, strict=True):
            padded[..., : image.shape[-2], : image.shape[-1]].copy_(image)
        return ImageList(batch, image_sizes)
