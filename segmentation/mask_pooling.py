"""Classifying masks from one pass of CLIP over the whole image instead of one pass per crop.

A vision transformer reads an image into its class token. Here each mask has a copy of that token, which attends to the
patches under its mask alone (as in MaskCLIP, arXiv 2208.08984, without its training), and patches attend to those that
share a mask with them, so that objects stay apart as they do in crops. The features of all masks cost little more than
one image. ResNets pool their last map under each mask by the same attention that pools it as a whole.
"""

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from prompt_pretrain.clip import Clip
from prompt_pretrain.errors import InputError
from segmentation.clip_adapter import MaskFormerClipAdapter, similarity_logits
from segmentation.clip_vision import resize_positions

__all__ = ["MaskPoolingClipAdapter", "pool_features"]

_SCALE = 2  # short side of the image that CLIP reads / side of a crop: patches must be small next to masks
_APART = 1e-4  # weight in attention of patches that share no mask / of those that do
_LONGEST = 4  # long side / short side at most, a bound on the cost of panoramas


class MaskPoolingClipAdapter(MaskFormerClipAdapter):
    """An adapter that classifies all masks of an image in one pass. The fill and the expansion of crops have no effect.

    With ``mask_matting`` patches count by the probability of the mask, otherwise by the share that it covers.
    """

    @property
    def masks_per_look(self) -> int:
        return sys.maxsize

    @torch.no_grad()
    def classify(
        self, images: Sequence[Tensor], class_names: Sequence[str], masks: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], list[Tensor]]:
        classes = self.class_features(class_names)
        logits: list[Tensor | None] = []
        valid = []
        for image, own in zip(images, masks, strict=True):
            binary = own > self.mask_thr
            which = binary.flatten(1).any(1)
            valid.append(which)
            if not which.any():
                logits.append(None)
                continue
            weights = own[which] if self.mask_matting else binary[which]
            features = pool_features(self.clip, self._resized(image), weights)
            logits.append(similarity_logits(classes, F.normalize(features.float(), dim=1), self.logit_scale))
        return logits, valid

    def _resized(self, image: Tensor) -> Tensor:
        """(1, 3, h, w) normalised image whose sides are whole numbers of patches."""
        normalised = (image - self.pixel_mean) / self.pixel_std
        height, width = image.shape[-2:]
        short = min(height, width)
        step = _patch_side(self.clip)
        size = [
            max(round(_SCALE * self.region_size * min(side / short, _LONGEST) / step), 1) * step
            for side in (height, width)
        ]
        return F.interpolate(normalised, size, mode="bicubic", align_corners=False, antialias=True)


def pool_features(clip: Clip, image: Tensor, weights: Tensor) -> Tensor:
    """(n, D) features, not normalised, of n masks; of a mask that covers everything, those of the image.

    Args:
        image: (1, 3, h, w) normalised, its sides multiples of the patch.
        weights: (n, H, W), of any size, in [0, 1] or bool; each positive somewhere.
    Raises:
        InputError: a tower that is neither a ViT nor a ResNet of CLIP.
    """
    visual = clip.model.visual
    image = image.to(clip.dtype)
    step = _patch_side(clip)
    grid = (image.shape[-2] // step, image.shape[-1] // step)
    shares = F.adaptive_avg_pool2d(weights.float()[None], grid)[0].flatten(1)  # (n, h·w)
    count = len(shares)
    # A patch counts by its share; a mask's own token counts as one whole patch, as the class token does.
    others = torch.full((count, count), -torch.inf, device=shares.device).fill_diagonal_(0)
    bias = torch.cat([shares.log(), others], dim=1).to(image.dtype)  # (n, h·w + n)
    if isinstance(visual, VisionTransformer):
        return _pool_vit(visual, image, grid, bias, _keep_apart(shares).to(image.dtype))
    return _pool_resnet(visual, image, grid, bias)


def _patch_side(clip: Clip) -> int:
    visual = clip.model.visual
    if isinstance(visual, ModifiedResNet) and isinstance(visual.attnpool, AttentionPool2d):
        return 32
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"
    if not plain or not all(type(block) is ResidualAttentionBlock for block in blocks):
        raise InputError(
            f"the image tower of {clip.clip_id} has no class token to pool by; set "
            "MODEL.CLIP_ADAPTER.REGION_CLASSIFIER 'crops'"
        )
    return visual.patch_size[0]


def _keep_apart(shares: Tensor) -> Tensor:
    """(1 + h·w, 1 + h·w) logarithms of weights between the class token and patches from their shares (n, h·w)."""
    bias = shares.new_zeros(1 + shares.shape[1], 1 + shares.shape[1])
    bias[1:, 1:] = (shares.T @ shares).clamp(_APART, 1).log()
    return bias


def _pool_vit(
    visual: VisionTransformer, image: Tensor, grid: tuple[int, int], bias: Tensor, between_patches: Tensor
) -> Tensor:
    patches = visual.conv1(image).flatten(2).transpose(1, 2)  # (1, h·w, C)
    tokens = torch.cat([visual.class_embedding.to(patches.dtype).expand(1, 1, -1), patches], dim=1)
    tokens = visual.ln_pre(tokens + resize_positions(visual.positional_embedding, grid).to(tokens.dtype))
    pooled = tokens[:, :1].expand(-1, len(bias), -1)
    for block in visual.transformer.resblocks:
        around = block.ln_1(torch.cat([tokens[:, 1:], pooled], dim=1))
        found = block.attn(around[:, -len(bias) :], around, around, attn_mask=bias, need_weights=False)[0]
        pooled = pooled + block.ls_1(found)
        pooled = pooled + block.ls_2(block.mlp(block.ln_2(pooled)))
        tokens = block(tokens, attn_mask=between_patches)
    features = visual.ln_post(pooled[0])
    return features if visual.proj is None else features @ visual.proj


def _pool_resnet(visual: ModifiedResNet, image: Tensor, grid: tuple[int, int], bias: Tensor) -> Tensor:
    x = visual.stem(image)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    pool = visual.attnpool
    positions = resize_positions(pool.positional_embedding, grid).to(x.dtype)
    cells = x[0].flatten(1).T  # (h·w, C)
    shares = bias[:, : len(cells)].exp()
    means = shares @ cells / shares.sum(1, keepdim=True)
    queries = means + positions[0]  # (n, C)
    around = torch.cat([cells + positions[1:], queries])

    def heads(rows: Tensor) -> Tensor:
        return rows.unflatten(1, (pool.num_heads, -1)).transpose(0, 1)  # (heads, rows, C / heads)

    found = F.scaled_dot_product_attention(
        heads(pool.q_proj(queries)), heads(pool.k_proj(around)), heads(pool.v_proj(around)), attn_mask=bias
    )
    return pool.c_proj(found.transpose(0, 1).flatten(1))
