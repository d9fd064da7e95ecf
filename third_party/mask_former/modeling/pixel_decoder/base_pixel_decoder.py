"""Pixel decoders: from a backbone's feature maps to one embedding per pixel at stride 4 (MaskFormer, section 3.3)."""

from collections.abc import Callable, Mapping
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from mask_former.modeling.transformer.position_encoding import PositionEmbeddingSine
from mask_former.modeling.transformer.transformer import build_encoder

__all__ = ["BasePixelDecoder", "TransformerEncoderPixelDecoder", "build_pixel_decoder"]

Norm = str | Callable[[int], nn.Module]


def build_pixel_decoder(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """The decoder named by ``MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME``.

    Raises:
        ValueError: it has no ``forward_features``.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    model = SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
    if not callable(getattr(model, "forward_features", None)):
        raise ValueError(f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {name!r}, which has no forward_features")
    return model


def _conv(channels: int, width: int, kernel: int, norm: Norm, activation: Callable[..., Tensor] | None) -> Conv2d:
    layer = Conv2d(
        channels,
        width,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=get_norm(norm, width),
        activation=activation,
    )
    weight_init.c2_xavier_fill(layer)
    return layer


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """A feature pyramid: coarse maps are upsampled and added to projected finer ones.

    ``layer_<i>`` are 3×3 convolutions on level i, ``adapter_<i>`` the projections; level 1 is the finest.
    """

    @configurable
    def __init__(self, input_shape: Mapping[str, ShapeSpec], *, conv_dim: int, mask_dim: int, norm: Norm = "") -> None:
        """Build the layers.

        Args:
            input_shape: channels and strides of the maps.
            conv_dim: channels of the pyramid.
            mask_dim: channels of the pixel embeddings.
            norm: of the convolutions; "" for biases instead.
        """
        super().__init__()
        levels = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in levels]
        self.mask_dim = mask_dim
        for index, (_, shape) in enumerate(levels, start=1):
            if index == len(levels):
                self._add_coarsest(index, shape.channels, conv_dim, norm)
            else:
                self.add_module(f"adapter_{index}", _conv(shape.channels, conv_dim, 1, norm, None))
                self.add_module(f"layer_{index}", _conv(conv_dim, conv_dim, 3, norm, F.relu))
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    def _add_coarsest(self, index: int, channels: int, conv_dim: int, norm: Norm) -> None:
        self.add_module(f"layer_{index}", _conv(channels, conv_dim, 3, norm, F.relu))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """(B, mask_dim, h, w) pixel embeddings of the finest level, and an encoded coarsest map if there is one."""
        coarsest, encoded = self._encode(features[self.in_features[-1]])
        y = self.get_submodule(f"layer_{len(self.in_features)}")(coarsest)
        for index in range(len(self.in_features) - 1, 0, -1):
            lateral = self.get_submodule(f"adapter_{index}")(features[self.in_features[index - 1]])
            upsampled = F.interpolate(y, size=lateral.shape[-2:], mode="nearest")
            y = self.get_submodule(f"layer_{index}")(lateral + upsampled)
        return self.mask_features(y), encoded

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The coarsest map as it enters the pyramid, and as a transformer may read it."""
        return x, None


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """A pyramid whose coarsest map first passes a transformer encoder."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        transformer_pre_norm: bool,
        conv_dim: int,
        mask_dim: int,
        norm: Norm = "",
    ) -> None:
        """As :class:`BasePixelDecoder`; ``transformer_*`` describe the encoder, whose width is ``conv_dim``."""
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        coarsest = max(input_shape.values(), key=lambda shape: shape.stride)
        self.input_proj = Conv2d(coarsest.channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        self.transformer = nn.Module()
        self.transformer.encoder = build_encoder(
            conv_dim,
            transformer_nheads,
            transformer_enc_layers,
            transformer_dim_feedforward,
            transformer_dropout,
            transformer_pre_norm,
        )
        self.pe_layer = PositionEmbeddingSine(conv_dim // 2, normalize=True)

    def _add_coarsest(self, index: int, channels: int, conv_dim: int, norm: Norm) -> None:
        super()._add_coarsest(index, conv_dim, conv_dim, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "transformer_dropout": node.DROPOUT,
            "transformer_nheads": node.NHEADS,
            "transformer_dim_feedforward": node.DIM_FEEDFORWARD,
            "transformer_enc_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "transformer_pre_norm": node.PRE_NORM,
        }

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.input_proj(x)
        pos = self.pe_layer(x).to(x.dtype)
        tokens = self.transformer.encoder(x.flatten(2).permute(2, 0, 1), pos.flatten(2).permute(2, 0, 1))
        encoded = tokens.permute(1, 2, 0).reshape(x.shape)
        return encoded, encoded
