"""What all models do with the images of their input dicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.modeling.backbone.backbone import Backbone
from detectron2.structures.image_list import ImageList

Inputs = Sequence[Mapping[str, Any]]


def register_pixel_statistics(model: nn.Module, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
    """Adds the buffers ``pixel_mean`` and ``pixel_std`` (C, 1, 1), which are not part of the state dict.

    Raises:
        ValueError: they differ in length.
    """
    if len(pixel_mean) != len(pixel_std):
        raise ValueError(
            f"pixel_mean {list(pixel_mean)} and pixel_std {list(pixel_std)} differ in length; "
            f"set MODEL.PIXEL_MEAN and MODEL.PIXEL_STD to one number for each channel"
        )
    model.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
    model.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)


def normalized_images(inputs: Inputs, pixel_mean: Tensor, pixel_std: Tensor, backbone: Backbone) -> ImageList:
    """The images of ``inputs`` on the device of ``pixel_mean``, normalised and padded as ``backbone`` wants them.

    Raises:
        ValueError: an input without an image (C, H, W) of as many channels as ``pixel_mean`` has.
    """
    images = []
    for i, entry in enumerate(inputs):
        image = entry.get("image")
        if not isinstance(image, Tensor) or image.dim() != 3 or len(image) != len(pixel_mean):
            found = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise ValueError(
                f"'image' of input {i} ({entry.get('file_name', 'no file name')}) is {found}, expected a tensor of "
                f"shape ({len(pixel_mean)}, H, W)"
            )
        images.append((image.to(pixel_mean.device) - pixel_mean) / pixel_std)
    return ImageList.from_tensors(images, backbone.size_divisibility, padding_constraints=backbone.padding_constraints)


def output_size(entry: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the result for an input: its ``height`` and ``width``, by default those of its image."""
    return entry.get("height", image_size[0]), entry.get("width", image_size[1])
