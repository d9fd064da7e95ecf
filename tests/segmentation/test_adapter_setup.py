"""Adapters from the config."""

import pytest

import third_party  # noqa: F401  (makes detectron2 importable)
from prompt_pretrain.errors import InputError
from segmentation.adapter_setup import build_adapter, build_mask_adapter
from segmentation.clip_adapter import MaskFormerClipAdapter
from tests.segmentation.tiny_models import tiny_config
from tests.segmentation_recipes import segmentation_config

NODE = "MODEL.CLIP_ADAPTER"


def test_a_region_adapter_shares_the_same_clip(tmp_path) -> None:
    cfg = tiny_config(tmp_path, f"{NODE}.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME", "shapeworld-tiny")
    node = cfg.MODEL.CLIP_ADAPTER
    first = build_mask_adapter(cfg, node)
    second = build_mask_adapter(cfg, node.REGION_CLIP_ADAPTER, share=first, share_node=node)
    assert second.clip_model is first.clip_model and second.prompt_learner is not first.prompt_learner
    assert type(first) is MaskFormerClipAdapter
    alone = build_mask_adapter(cfg, node.REGION_CLIP_ADAPTER)
    assert alone.clip_model is not first.clip_model


def test_configs_without_our_own_keys_are_enough() -> None:
    cfg = segmentation_config()
    cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = "shapeworld-tiny"
    adapter = build_mask_adapter(cfg, cfg.MODEL.CLIP_ADAPTER)
    assert (adapter.region_size, adapter.region_resized, adapter.mask_thr) == (224, True, 0.5)
    assert build_adapter(cfg).embed_dim == adapter.embed_dim


def test_errors_name_the_key(tmp_path) -> None:
    missing = str(tmp_path / "clip.pt")
    cfg = tiny_config(tmp_path, f"{NODE}.CLIP_MODEL_NAME", missing)
    with pytest.raises(InputError, match=rf"^{NODE}.CLIP_MODEL_NAME: .*clip.pt"):
        build_adapter(cfg)
    cfg = tiny_config(tmp_path, f"{NODE}.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME", "ViT-Q/16")
    with pytest.raises(InputError, match=rf"^{NODE}.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME: unknown CLIP 'ViT-Q/16'"):
        build_mask_adapter(cfg, cfg.MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER)
    overrides = (f"{NODE}.REGION_CLIP_ADAPTER.CLIP_MODEL_NAME", "shapeworld-tiny")
    cfg = tiny_config(tmp_path, *overrides, f"{NODE}.REGION_CLIP_ADAPTER.PROMPT_LEARNER", "magic")
    with pytest.raises(InputError, match=rf"^{NODE}.REGION_CLIP_ADAPTER.PROMPT_LEARNER is 'magic'"):
        build_mask_adapter(cfg, cfg.MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER)
