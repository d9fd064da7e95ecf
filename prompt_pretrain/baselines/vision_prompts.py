"""Learned tokens in the image tower: a vision transformer whose layers see some vectors beside the patches."""

from collections.abc import Sequence

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError


class PromptedImageTower:
    """The frozen image tower of a CLIP as a function of images and prompt vectors.

    Attributes:
        width: channels of the prompt vectors. layers: of the transformer, the largest depth of prompts.
    Raises:
        InputError: the tower is no vision transformer that pools its class token.
    """

    def __init__(self, clip: Clip) -> None:
        visual = clip.model.visual
        if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok" or visual.attn_pool is not None:
            raise InputError(
                f"{clip.clip_id} has no vision transformer with a class token, so nothing can be prompted in its image "
                "tower; choose a ViT, or a method that prompts the text tower alone (CoOp, CoCoOp, LASP)"
            )
        self.clip, self.visual = clip, visual
        self.width: int = visual.class_embedding.shape[0]
        self.layers = len(visual.transformer.resblocks)

    def check_depth(self, depth: int) -> None:
        """Raise unless prompts can enter before ``depth`` layers."""
        if not 1 <= depth <= self.layers:
            raise InputError(
                f"prompts of depth {depth} for {self.clip.clip_id}, whose image tower has {self.layers} layers; "
                f"set the prompt depth to 1..{self.layers}"
            )

    def __call__(self, images: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        """Image features (B, D), not normalised; differentiable with respect to ``prompts``.

        Args:
            images: (B, 3, S, S), normalised.
            prompts: for each of the first layers n vectors (n, width). Those of layer 0 join the sequence behind the
                patches, without a position and before the first normalisation; the others replace what the layer
                before made of them. Behind the last prompted layer the n tokens are carried on.
        """
        visual, count = self.visual, len(prompts[0])
        patches = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, L, width)
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        x = visual.ln_pre(torch.cat([x, _for_each(prompts[0], x)], dim=1))
        for layer, block in enumerate(visual.transformer.resblocks):
            if 0 < layer < len(prompts):
                x = torch.cat([x[:, :-count], _for_each(prompts[layer], x)], dim=1)
            x = block(x)
        pooled = visual.ln_post(x[:, 0])
        return pooled if visual.proj is None else pooled @ visual.proj


def _for_each(vectors: Tensor, x: Tensor) -> Tensor:
    return vectors.to(x.dtype).expand(len(x), -1, -1)
