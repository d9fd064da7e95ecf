"""Models of released configs as the goldens build them: settings, class embeddings and image counts from the recipe."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import detection  # noqa: F401  makes centernet and detectron2 importable
from centernet.config import add_centernet_config
from detection import add_detic_config
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from tests.golden_files import Golden
from tests.golden_recipes import apply_settings, fill_by_rules, released_settings, write_category_counts


def released_config(name: str, overrides: Mapping[str, Any] | None = None, device: str = "cpu") -> CfgNode:
    """A released config of Detic, POMP or, with ``CenterNet2:`` before its name, CenterNet2."""
    cfg = get_cfg()
    add_centernet_config(cfg)
    if not name.startswith("CenterNet2:"):
        add_detic_config(cfg)
    apply_settings(cfg, released_settings(name) | dict(overrides or {}))
    cfg.MODEL.DEVICE = device
    return cfg


def recorded_config(golden: Golden, folder: Path, device: str = "cpu") -> CfgNode:
    """The config of a whole-model golden; its class embeddings and image counts are written to ``folder``."""
    recipe = golden.meta["class_embedding"]
    files = {
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH": str(
            write_embeddings(folder / "embeddings.npy", recipe["seed"], recipe["C"], recipe["D"])
        ),
        "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": str(
            write_category_counts(folder / "counts.json", category_counts(golden.meta["category_frequency"]))
        ),
    }
    return released_config(golden.meta["config"], {**golden.meta["overrides"], **files}, device)


def recorded_model(golden: Golden, folder: Path) -> nn.Module:
    """The filled model of a whole-model golden."""
    model = build_model(recorded_config(golden, folder))
    fill_by_rules(model, golden.meta)
    return model


def write_embeddings(file: Path, seed: int, num_classes: int, width: int) -> Path:
    np.save(file, np.random.RandomState(seed).standard_normal((num_classes, width)).astype(np.float32))
    return file


def category_counts(recipe: str) -> np.ndarray:
    """From ``… RandomState(8).randint(0,400,40) …``, with ``c[4::5]=0`` where every fifth from the fourth on is 0."""
    seed, low, high, count = map(
        int, re.search(r"RandomState\((\d+)\)\.randint\((\d+), ?(\d+), ?(\d+)\)", recipe).groups()
    )
    counts = np.random.RandomState(seed).randint(low, high, count)
    zero = re.search(r"c\[(\d+)::(\d+)\] ?= ?0", recipe)
    if zero:
        counts[int(zero[1]) :: int(zero[2])] = 0
    return counts
