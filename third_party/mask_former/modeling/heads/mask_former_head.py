"""The head of MaskFormer: a pixel decoder and a transformer predictor."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from mask_former.modeling.pixel_decoder.base_pixel_decoder import build_pixel_decoder
from mask_former.modeling.transformer.transformer_predictor import TransformerPredictor

__all__ = ["MaskFormerHead", "move_pixel_decoder_entries", "predictor_channels"]

logger = logging.getLogger(__name__)


def move_pixel_decoder_entries(state_dict: dict[str, Any], prefix: str, version: int | None) -> None:
    """Rename, in place, the entries of a state dict from before version 2, when heads had no ``pixel_decoder``."""
    if version is not None and version >= 2:
        return
    kept = (f"{prefix}predictor", f"{prefix}pixel_decoder.")
    old = [name for name in state_dict if name.startswith(prefix) and not name.startswith(kept)]
    for name in old:
        state_dict[f"{prefix}pixel_decoder.{name[len(prefix) :]}"] = state_dict.pop(name)
    if old:
        logger.warning("%d entries of %r come from an old version: moved to pixel_decoder", len(old), prefix)


def predictor_channels(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> int:
    """Channels of the map that the transformer reads, ``MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE``.

    Raises:
        ValueError: there is no such map.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    if name == "transformer_encoder":
        return cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
    if name not in input_shape:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}; expected 'transformer_encoder' or one of the "
            f"backbone's {', '.join(input_shape)}"
        )
    channels = input_shape[name].channels
    assert channels is not None
    return channels


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Class scores and masks of a set of queries."""

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
        transformer_predictor: nn.Module,
        transformer_in_feature: str,
    ) -> None:
        """Join the parts.

        Args:
            input_shape: channels and strides of the backbone's maps.
            num_classes: K.
            pixel_decoder: its ``forward_features(features)`` gives pixel embeddings and, or None, an encoded map.
            loss_weight: unused by the losses of masks; kept for the published interface, like ``ignore_value``.
            transformer_predictor: called with a feature map and the pixel embeddings.
            transformer_in_feature: name of that map, or "transformer_encoder" for the encoded one.
        """
        super().__init__()
        self.in_features = [name for name, _ in sorted(input_shape.items(), key=lambda item: item[1].stride)]
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        self.common_stride = 4
        self.pixel_decoder = pixel_decoder
        self.predictor = transformer_predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
            "transformer_predictor": cls.build_predictor(cfg, predictor_channels(cfg, input_shape)),
            "transformer_in_feature": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
        }

    @classmethod
    def build_predictor(cls, cfg: CfgNode, in_channels: int) -> nn.Module:
        """The predictor of a config; heads with another one override this."""
        return TransformerPredictor(cfg, in_channels, mask_classification=True)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        move_pixel_decoder_entries(state_dict, prefix, local_metadata.get("version"))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Any]:
        """Predictions as of :class:`TransformerPredictor`.

        Raises:
            ValueError: the transformer shall read an encoded map, but the pixel decoder has none.
        """
        return self.layers(features)

    def layers(self, features: Mapping[str, Tensor]) -> dict[str, Any]:
        """:meth:`forward` under the published name."""
        mask_features, encoded = self.pixel_decoder.forward_features(features)
        if self.transformer_in_feature != "transformer_encoder":
            return self.predictor(features[self.transformer_in_feature], mask_features)
        if encoded is None:
            raise ValueError(
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'transformer_encoder', which needs "
                "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME 'TransformerEncoderPixelDecoder'"
            )
        return self.predictor(encoded, mask_features)
