"""Recipes that the ``zsseg_*`` and ``maskformer_*`` goldens share; described in ``tests/golden/README.md``."""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import third_party  # noqa: F401  (makes detectron2 and mask_former importable)
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.projects.deeplab import add_deeplab_config
from mask_former import add_mask_former_config
from tests.golden.fill import fill
from tests.golden_files import GOLDEN_FOLDER

REFERENCE = GOLDEN_FOLDER / "reference"


@cache
def reference(name: str) -> Any:
    """Content of ``tests/golden/reference/<name>.json.gz``."""
    return json.loads(gzip.decompress((REFERENCE / f"{name}.json.gz").read_bytes()))


def segmentation_config() -> CfgNode:
    """The defaults of segmentation, on the CPU."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_mask_former_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def released_config(recipe: Mapping[str, Any]) -> CfgNode:
    """The config of ``recipe``: a ``release`` by file name (or the defaults), then ``always`` and ``overrides``."""
    cfg = segmentation_config()
    if "release" in recipe:
        set_values(cfg, released_values(recipe["release"]))
    for field in ("always", "overrides"):
        set_values(cfg, recipe.get(field, {}))
    return cfg


def released_values(name: str) -> dict[str, Any]:
    """Key to value of a published file where it differs from the defaults."""
    facts = reference("zsseg_configs")
    entry = facts["zsseg"].get(name) or facts["pomp"][name]
    values = dict(facts["parents"].get(entry.get("parent"), {}))
    for key in entry.get("back_to_default", ()):
        values.pop(key, None)
    return values | entry["set"]


def set_values(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    """Merge values by dotted key; lists become tuples where the config has one."""
    for key, value in values.items():
        node: Any = cfg
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        if isinstance(value, list) and isinstance(node[last], tuple):
            value = tuple(value)
        node[last] = value


def fill_by_factors(module: nn.Module, recipe: Mapping[str, Any], *, seed: int = 0, skip: Sequence[str] = ()) -> None:
    """Fill ``module``, then ``after_fill``: entries with rule[0] that end with rule[1] times rule[2] (+ rule[3])."""
    fill(module, skip=skip, seed=seed)
    entries = module.state_dict()
    for substring, ending, factor, *offset in recipe.get("after_fill", ()):
        for name, entry in entries.items():
            if substring in name and name.endswith(ending):
                entry.mul_(factor).add_(offset[0] if offset else 0.0)


def check_sample(name: str, found: Tensor, arrays: Mapping[str, np.ndarray], *, rtol: float, atol: float) -> None:
    """Compare a tensor with its strided sample ``arrays[name]`` and, where recorded, its ``<name>.stats``."""
    expected = torch.from_numpy(arrays[name])
    flat = found.detach().float().cpu().contiguous().view(-1)
    count = expected.numel()
    sample = flat[:: max(1, flat.numel() // count)][:count]
    assert_close(sample, expected.flatten(), rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")
    if f"{name}.stats" in arrays:
        values = flat.double()
        total, norm, low, high = (float(value) for value in arrays[f"{name}.stats"])
        spread = rtol * norm + atol * values.numel() ** 0.5
        assert abs(float(values.norm()) - norm) <= spread, name
        assert abs(float(values.sum()) - total) <= spread * values.numel() ** 0.5, name
        assert abs(float(values.min()) - low) <= rtol * abs(low) + atol, name
        assert abs(float(values.max()) - high) <= rtol * abs(high) + atol, name


@contextmanager
def registered_data_sets(data_sets: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Empty data sets with the given metadata."""
    for name, metadata in data_sets.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(**{key: list(value) for key, value in metadata.items()})
    try:
        yield
    finally:
        for name in data_sets:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
