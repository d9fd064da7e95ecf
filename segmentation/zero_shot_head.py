"""MaskFormer's head with queries in CLIP's joint space instead of class scores (ZSSeg, section 3.3)."""

from typing import Any

from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from mask_former.modeling.heads.mask_former_head import MaskFormerHead
from mask_former.modeling.transformer.transformer_predictor import MLP, TransformerPredictor

__all__ = ["ZeroShotMaskFormerHead", "ZeroShotTransformerPredictor"]


class ZeroShotTransformerPredictor(TransformerPredictor):
    """A predictor whose ``pred_logits`` are embeddings (B, Q, D), not normalised, to compare with text features."""

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        embedding_dim: int,
        embed_hidden_dim: int,
        embed_layers: int,
        **kwargs: Any,
    ) -> None:
        """As :class:`TransformerPredictor`.

        Args:
            embedding_dim: D, of CLIP's joint space.
            embed_hidden_dim: of the MLP to that space.
            embed_layers: its linear layers.
        """
        super().__init__(in_channels, mask_classification, **kwargs)
        self.class_embed: nn.Module = MLP(kwargs["hidden_dim"], embed_hidden_dim, embedding_dim, embed_layers)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return super().from_config(cfg, in_channels, mask_classification) | {
            "embedding_dim": head.EMBEDDING_DIM,
            "embed_hidden_dim": head.EMBED_HIDDEN_DIM,
            "embed_layers": head.EMBED_LAYERS,
        }


@SEM_SEG_HEADS_REGISTRY.register()
class ZeroShotMaskFormerHead(MaskFormerHead):
    """Embeddings and masks of a set of queries."""

    @classmethod
    def build_predictor(cls, cfg: CfgNode, in_channels: int) -> nn.Module:
        return ZeroShotTransformerPredictor(cfg, in_channels, mask_classification=True)
