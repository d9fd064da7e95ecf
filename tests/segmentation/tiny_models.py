"""Tiny configs, models and inputs for tests of single parts."""

from pathlib import Path
from typing import Any

import torch

from detectron2.config import CfgNode, get_cfg
from prompt_pretrain.clip import Clip, clip_from_config
from segmentation.config import add_config
from tests.segmentation.tiny_runs import write_config

WIDTH, EMBED_DIM, PATCH, SIDE = 32, 16, 8, 32  # of the tiny CLIPs

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": PATCH},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2},
}
RESNET_CONFIG = CLIP_CONFIG | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}


def tiny_clip(config: dict[str, Any] = CLIP_CONFIG) -> Clip:
    return clip_from_config(config)


def tiny_config(folder: Path, *overrides: Any, stage: int = 2) -> CfgNode:
    """The config of ``tiny_runs`` with its data sets' names, which need not be registered."""
    cfg = get_cfg()
    add_config(cfg)
    cfg.merge_from_file(str(write_config(folder, stage)))
    cfg.merge_from_list(list(overrides))
    return cfg


def blob_masks(height: int, width: int, count: int = 3, seed: int = 0) -> torch.Tensor:
    """(count, height, width) probabilities, high in one rectangle each."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, height, width, generator=generator) * 0.3
    for index in range(count):
        top, left = (int(torch.randint(0, side // 2, (1,), generator=generator)) for side in (height, width))
        masks[index, top : top + height // 3 + index, left : left + width // 3 + 1] += 0.6
    return masks


def noise_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, height, width) uint8."""
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
