"""Swin Transformer (arXiv 2103.14030) in the sizes of Detic's models."""

from collections.abc import Sequence
from typing import NoReturn

from detection.backbones.timm_backbone import build_fpn
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from mask_former.modeling.backbone.swin import SwinSettings, SwinTransformer
from prompt_pretrain.errors import InputError

__all__ = ["SIZES", "build_swintransformer_backbone", "swin_backbone"]

_BASE = SwinSettings(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3)
_LARGE = SwinSettings(192, (2, 2, 18, 2), (6, 12, 24, 48), 7, 0.3)
SIZES = {
    "T": SwinSettings(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2),
    "S": SwinSettings(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.2),
    "B": _BASE,
    "B-22k": _BASE,
    "B-22k-384": _BASE._replace(window=12),
    "L-22k": _LARGE,
    "L-22k-384": _LARGE._replace(window=12),
}


@BACKBONE_REGISTRY.register()
def build_swintransformer_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinTransformer:
    """The network of ``MODEL.SWIN``, see `swin_backbone`."""
    settings = cfg.MODEL.SWIN
    if settings.SIZE not in SIZES:
        raise InputError(f"MODEL.SWIN.SIZE is {settings.SIZE!r}; expected one of {', '.join(SIZES)}")
    return swin_backbone(SIZES[settings.SIZE], settings.OUT_FEATURES, settings.USE_CHECKPOINT)


def swin_backbone(size: SwinSettings, out_stages: Sequence[int], use_checkpoint: bool = False) -> SwinTransformer:
    """A network with maps ``swin<i>`` of stride 4 · 2^i for stages i, of 0 to 3.

    Raises:
        InputError: a stage that does not exist.
    """
    stages = len(size.depths)
    if not out_stages or not all(0 <= stage < stages for stage in out_stages):
        raise InputError(f"MODEL.SWIN.OUT_FEATURES is {list(out_stages)}; expected some of 0 to {stages - 1}")
    return SwinTransformer(size, {stage: f"swin{stage}" for stage in out_stages}, use_checkpoint=use_checkpoint)


@BACKBONE_REGISTRY.register()
def build_swintransformer_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """`FPN` on `build_swintransformer_backbone`, with ``p6`` and ``p7`` by convolutions from ``p5``."""
    return build_fpn(cfg, build_swintransformer_backbone(cfg, input_shape), with_p6p7=True)


@BACKBONE_REGISTRY.register()
def build_swintransformer_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NoReturn:
    """Not part of this package: no published detector has it."""
    raise NotImplementedError(
        "build_swintransformer_bifpn_backbone (MODEL.BACKBONE.NAME): BiFPN is not part of this package; use "
        "build_swintransformer_fpn_backbone, or register your own"
    )
