"""Swin Transformer as MaskFormer's backbone: maps ``res2`` to ``res5``."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from mask_former.modeling.backbone.swin import SwinSettings, SwinTransformer

__all__ = ["D2SwinTransformer"]

_STAGES = {"res2": 0, "res3": 1, "res4": 2, "res5": 3}


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """The network of ``MODEL.SWIN``."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        """Build it; ``input_shape`` is that of an image.

        Raises:
            ValueError: an output that does not exist.
        """
        node = cfg.MODEL.SWIN
        unknown = set(node.OUT_FEATURES) - set(_STAGES)
        if unknown or not node.OUT_FEATURES:
            raise ValueError(f"MODEL.SWIN.OUT_FEATURES is {list(node.OUT_FEATURES)}; expected some of {list(_STAGES)}")
        settings = SwinSettings(
            width=node.EMBED_DIM,
            depths=tuple(node.DEPTHS),
            heads=tuple(node.NUM_HEADS),
            window=node.WINDOW_SIZE,
            drop_path=node.DROP_PATH_RATE,
            patch=node.PATCH_SIZE,
            mlp_ratio=node.MLP_RATIO,
            qkv_bias=node.QKV_BIAS,
            qk_scale=node.QK_SCALE,
            dropout=node.DROP_RATE,
            attention_dropout=node.ATTN_DROP_RATE,
            patch_norm=node.PATCH_NORM,
            position_grid=node.PRETRAIN_IMG_SIZE // node.PATCH_SIZE if node.APE else 0,
        )
        # A norm for every stage, whether it is returned or not, as in the released state dicts.
        outputs = {stage: name for name, stage in _STAGES.items() if name in node.OUT_FEATURES}
        super().__init__(settings, outputs, norm_stages=range(len(node.DEPTHS)))
