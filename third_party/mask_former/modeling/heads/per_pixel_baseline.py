"""Per-pixel classification on MaskFormer's pixel decoder, for detectron2's ``SemanticSegmentor`` (section 4.2)."""

from collections.abc import Mapping
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from mask_former.modeling.heads.mask_former_head import (
    MaskFormerHead,
    move_pixel_decoder_entries,
    predictor_channels,
)
from mask_former.modeling.pixel_decoder.base_pixel_decoder import build_pixel_decoder
from mask_former.modeling.transformer.transformer_predictor import TransformerPredictor

__all__ = ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"]

Losses = dict[str, Tensor]


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(nn.Module):
    """A 1×1 convolution on the pixel embeddings."""

    _version = 2

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        pixel_decoder: nn.Module,
        loss_weight: float = 1.0,
        ignore_value: int = -1,
    ) -> None:
        """Build the classifier.

        Args:
            input_shape: channels and strides of the backbone's maps.
            num_classes: K.
            pixel_decoder: has ``mask_dim`` and ``forward_features``.
            loss_weight: factor of the loss.
            ignore_value: label of pixels that do not count.
        """
        super().__init__()
        self.in_features = [name for name, _ in sorted(input_shape.items(), key=lambda item: item[1].stride)]
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.common_stride = 4
        self.loss_weight = loss_weight
        self.pixel_decoder = pixel_decoder
        self.predictor: nn.Module = Conv2d(self.pixel_decoder.mask_dim, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        move_pixel_decoder_entries(state_dict, prefix, local_metadata.get("version"))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def forward(self, features: Mapping[str, Tensor], targets: Tensor | None = None) -> tuple[Tensor | None, Losses]:
        """(None, losses) in training, (logits (B, K, H, W), {}) otherwise; targets (B, H, W) are labels."""
        maps = self.class_maps(features)
        if not self.training:
            return self.upsample(maps[0]), {}
        assert targets is not None
        names = ["loss_sem_seg", *(f"loss_sem_seg_{i}" for i in range(len(maps) - 1))]
        return None, {name: self.loss(x, targets) for name, x in zip(names, maps, strict=True)}

    def class_maps(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Logits (B, K, h, w) at stride 4; with deep supervision those of the other layers behind them."""
        return [self.predictor(self.pixel_decoder.forward_features(features)[0])]

    def upsample(self, x: Tensor) -> Tensor:
        """Logits at the size of the padded image."""
        return F.interpolate(x, scale_factor=self.common_stride, mode="bilinear", align_corners=False)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Weighted cross-entropy of logits at stride 4 with labels (B, H, W)."""
        logits = self.upsample(predictions.float())
        total = F.cross_entropy(logits, targets, ignore_index=self.ignore_value, reduction="sum")
        count = (targets != self.ignore_value).sum().clamp(min=1)  # a mean over no pixel would be NaN
        return total / count * self.loss_weight


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(PerPixelBaselineHead):
    """Mask embeddings of queries as classifiers of pixels: query k is class k."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_predictor: nn.Module,
        transformer_in_feature: str,
        **kwargs: Any,
    ) -> None:
        """As :class:`PerPixelBaselineHead`, with the predictor of ``MaskFormerHead`` without class scores."""
        super().__init__(input_shape, **kwargs)
        self.predictor = transformer_predictor
        self.transformer_in_feature = transformer_in_feature
        self.deep_supervision = transformer_predictor.aux_loss

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        node, classes = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if classes != node.NUM_OBJECT_QUERIES:
            raise ValueError(
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {node.NUM_OBJECT_QUERIES}, but PerPixelBaselinePlusHead has "
                f"one query for each of the {classes} classes (MODEL.SEM_SEG_HEAD.NUM_CLASSES)"
            )
        channels = predictor_channels(cfg, input_shape)
        return super().from_config(cfg, input_shape) | {
            "transformer_predictor": TransformerPredictor(cfg, channels, mask_classification=False),
            "transformer_in_feature": node.TRANSFORMER_IN_FEATURE,
        }

    def class_maps(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        outputs = MaskFormerHead.layers(self, features)  # type: ignore[arg-type]
        return [outputs["pred_masks"], *(level["pred_masks"] for level in outputs.get("aux_outputs", ()))]
