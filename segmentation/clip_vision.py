"""CLIP's image tower at sizes that are not its own."""

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.func import functional_call

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError

__all__ = ["encode_images"]


def encode_images(clip: Clip, images: Tensor) -> Tensor:
    """Image features (B, D), not normalised, of normalised images (B, 3, H, W) of any size.

    The grid of position embeddings is resized to that of the patches (bicubic); the class position is kept.

    Raises:
        InputError: an image smaller than a patch, or another size than the tower's own where the tower is neither a
            ViT nor a ResNet of CLIP.
    """
    visual = clip.model.visual
    images = images.to(clip.dtype)
    size = tuple(images.shape[-2:])
    if size == (clip.image_size, clip.image_size):
        return visual(images)
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
    return functional_call(visual, {name: _resize(positions, grid)}, (images,))


def _resize(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1 + h·w, C) position embeddings of a grid (h, w) from those of a square grid."""
    first, rest = positions[:1], positions[1:]
    side = round(len(rest) ** 0.5)
    square = rest.T.reshape(1, -1, side, side).float()
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2)[0].T.to(first.dtype)])
