"""CLIP adapters from the config."""

from detectron2.config import CfgNode
from prompt_pretrain.clip import Clip, load_clip
from prompt_pretrain.errors import InputError
from segmentation.clip_adapter import CROP_SIDE, LOGIT_SCALE, ClipAdapter, MaskFormerClipAdapter
from segmentation.mask_pooling import MaskPoolingClipAdapter
from segmentation.prompt_learners import build_prompt_learner

__all__ = ["build_adapter", "build_mask_adapter"]

_NODE = "MODEL.CLIP_ADAPTER"
_REGION_CLASSIFIERS = {"crops": MaskFormerClipAdapter, "pooling": MaskPoolingClipAdapter}


def build_adapter(cfg: CfgNode, *, stage: int = 1) -> ClipAdapter:
    """An adapter for whole images: of stage 1, which learns prompts, or of a segmenter, which is stage 2."""
    node = cfg.MODEL.CLIP_ADAPTER
    clip = _clip(cfg, node, _NODE)
    scale = node.get("LOGIT_SCALE", LOGIT_SCALE)  # configs of others lack this project's own keys
    return ClipAdapter(clip, build_prompt_learner(node, clip, stage=stage), logit_scale=scale)


def build_mask_adapter(
    cfg: CfgNode,
    text: CfgNode,
    *,
    share: MaskFormerClipAdapter | None = None,
    share_node: CfgNode | None = None,
) -> MaskFormerClipAdapter:
    """An adapter of stage 2 with the CLIP and prompt of ``text``, CLIP_ADAPTER or its REGION_CLIP_ADAPTER.

    Args:
        share: another adapter, whose CLIP is used, instead of a copy, if ``share_node`` names the same one.
    """
    node = cfg.MODEL.CLIP_ADAPTER
    where = _NODE if text is node else f"{_NODE}.REGION_CLIP_ADAPTER"
    clip: Clip
    if share is not None and share_node is not None and share_node.CLIP_MODEL_NAME == text.CLIP_MODEL_NAME:
        clip = share.clip
    else:
        clip = _clip(cfg, text, where)
    kind = node.get("REGION_CLASSIFIER", "crops")
    if kind not in _REGION_CLASSIFIERS:
        raise InputError(f"{_NODE}.REGION_CLASSIFIER is {kind!r}; expected one of {', '.join(_REGION_CLASSIFIERS)}")
    return _REGION_CLASSIFIERS[kind](
        clip,
        build_prompt_learner(text, clip, stage=2, where=where),
        mask_fill=node.MASK_FILL,
        mask_expand_ratio=node.MASK_EXPAND_RATIO,
        mask_thr=node.MASK_THR,
        mask_matting=node.MASK_MATTING,
        region_resized=node.REGION_RESIZED,
        region_size=node.get("REGION_SIZE", CROP_SIDE),
        region_precision=node.get("REGION_PRECISION", "fp32"),
        logit_scale=node.get("LOGIT_SCALE", LOGIT_SCALE),
    )


def _clip(cfg: CfgNode, node: CfgNode, where: str) -> Clip:
    try:
        return load_clip(node.CLIP_MODEL_NAME, device=cfg.MODEL.DEVICE)
    except InputError as error:
        raise InputError(f"{where}.CLIP_MODEL_NAME: {error}") from error
