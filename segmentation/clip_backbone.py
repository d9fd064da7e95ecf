"""CLIP's image tower as a backbone: not in the paper, for trainings that have minutes instead of days."""

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.errors import InputError
from segmentation.clip_vision import resize_positions

__all__ = ["ClipPyramid", "build_clip_pyramid"]
_STEM_WIDTH = 64
_GROUPS = 8


class ClipPyramid(Backbone):
    """Patch tokens of a frozen ViT at two resolutions, beside trained convolutions that see finer borders.

    For patches of P pixels: ``res2`` (stride 4) are the convolutions, ``res3`` (stride P) the tokens of the last layer,
    ``res4`` (stride 2P) those of the middle and the last layer, averaged 2 x 2.
    """

    def __init__(self, clip: Clip, pixel_mean: list[float], pixel_std: list[float], *, bgr: bool = False) -> None:
        """Take the tower of a CLIP.

        Args:
            pixel_mean, pixel_std: with which images come normalised, in [0, 255].
            bgr: the order of their channels.
        Raises:
            InputError: its image tower is no ViT.
        """
        super().__init__()
        visual = clip.model.visual
        if not isinstance(visual, VisionTransformer):
            raise InputError(
                f"MODEL.BACKBONE.NAME build_clip_pyramid needs a ViT, {clip.clip_id} has none; set "
                "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME to one that has, or take another backbone"
            )
        self.visual = visual
        self.bgr = bgr
        scale = torch.tensor(pixel_std) / 255 / torch.tensor(clip.std)
        shift = (torch.tensor(pixel_mean) / 255 - torch.tensor(clip.mean)) / torch.tensor(clip.std)
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)
        half = _STEM_WIDTH // 2
        self.stem = nn.Sequential(*_convolution(3, half), *_convolution(half, _STEM_WIDTH))
        patch, width = visual.patch_size[0], visual.class_embedding.shape[0]
        self._out_features = ["res2", "res3", "res4"]
        self._out_feature_channels = {"res2": _STEM_WIDTH, "res3": width, "res4": 2 * width}
        self._out_feature_strides = {"res2": 4, "res3": patch, "res4": 2 * patch}

    @property
    def size_divisibility(self) -> int:
        return self._out_feature_strides["res4"]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of normalised images (B, 3, H, W) whose sides are multiples of ``size_divisibility``."""
        middle, last = self._tokens(x.flip(1) if self.bgr else x)
        coarse = F.avg_pool2d(torch.cat([middle, last], 1), 2)
        return {"res2": self.stem(x), "res3": last, "res4": coarse}

    @torch.no_grad()
    def _tokens(self, rgb: Tensor) -> list[Tensor]:
        """(B, W, h, w) normalised tokens of the middle and the last layer."""
        visual = self.visual
        patches = visual.conv1((rgb * self.scale + self.shift).to(visual.conv1.weight.dtype))
        grid = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)  # (B, h·w, W)
        first = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        positions = resize_positions(visual.positional_embedding, grid).to(tokens.dtype)
        tokens = visual.ln_pre(torch.cat([first, tokens], 1) + positions)
        depth = len(visual.transformer.resblocks)
        _, layers = visual.transformer.forward_intermediates(tokens, indices=[depth // 2 - 1, depth - 1])
        found = [F.layer_norm(layer[:, 1:].float(), layer.shape[-1:]) for layer in layers]
        return [layer.transpose(1, 2).unflatten(2, grid) for layer in found]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the three features."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


@BACKBONE_REGISTRY.register()
def build_clip_pyramid(cfg: CfgNode, input_shape: ShapeSpec) -> ClipPyramid:
    """The tower of ``MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME``."""
    clip = load_clip(cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME, device=cfg.MODEL.DEVICE)
    return ClipPyramid(clip, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, bgr=cfg.INPUT.FORMAT == "BGR")


def _convolution(width_in: int, width_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, width_out),
        nn.ReLU(),
    )
