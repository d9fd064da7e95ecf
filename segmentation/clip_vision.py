"""CLIP's image tower at sizes that are not its own."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.func import functional_call

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from segmentation.packed_vit import packed_vit

__all__ = ["PRECISIONS", "encode_images", "resize_positions"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def encode_images(clip: Clip, images: Tensor, *, precision: str = "fp32") -> Tensor:
    """Image features (B, D), not normalised, of normalised images (B, 3, H, W) of any size.

    The grid of position embeddings is resized to that of the patches (bicubic); the class position is kept. Without
    gradients a ViT takes the fast path of :class:`~segmentation.packed_vit.PackedVit`.

    Args:
        precision: "fp32", or "bf16" for the matrix products of a tower whose weights are float32.

    Raises:
        InputError: an image smaller than a patch, or another size than the tower's own where the tower is neither a
            ViT nor a ResNet of CLIP.
    """
    visual = clip.model.visual
    images = images.to(clip.dtype)
    size = tuple(images.shape[-2:])
    if size == (clip.image_size, clip.image_size):
        return _encode(visual, images, precision)
    if isinstance(visual, VisionTransformer):
        name, positions, patch = "positional_embedding", visual.positional_embedding, visual.patch_size
        grid = (size[0] // patch[0], size[1] // patch[1])
    elif isinstance(visual, ModifiedResNet):
        name, positions, patch = "attnpool.positional_embedding", visual.attnpool.positional_embedding, (32, 32)
        grid = ((size[0] + 1) // 2 // 16, (size[1] + 1) // 2 // 16)  # the first of five halvings rounds up
    else:
        raise InputError(
            f"{clip.clip_id} encodes images of {clip.image_size} x {clip.image_size} pixels only, got {size}; set "
            "MODEL.CLIP_ADAPTER.REGION_RESIZED True or take a ViT or ResNet of CLIP"
        )
    if 0 in grid:
        raise InputError(
            f"an image of {size[0]} x {size[1]} pixels is smaller than a patch of {clip.clip_id} "
            f"({patch[0]} x {patch[1]}); set MODEL.CLIP_ADAPTER.REGION_RESIZED True"
        )
    return _encode(visual, images, precision, {name: resize_positions(positions, grid)})


def _encode(visual: Any, images: Tensor, precision: str, positions: Mapping[str, Tensor] | None = None) -> Tensor:
    """Features of images for which the parameter in ``positions``, if any, takes its value there."""
    dtype = PRECISIONS[precision]
    if isinstance(visual, VisionTransformer) and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        packed = packed_vit(visual, dtype)
        if packed is not None:
            return packed.encode(images, *(positions or {"": visual.positional_embedding}).values())
    with torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
        return functional_call(visual, dict(positions), (images,)) if positions else visual(images)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1 + h·w, C) position embeddings of a grid (h, w) from those of a square grid."""
    first, rest = positions[:1], positions[1:]
    side = round(len(rest) ** 0.5)
    square = rest.T.reshape(1, -1, side, side).float()
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2)[0].T.to(first.dtype)])
