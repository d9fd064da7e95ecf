"""The files of ``configs/segmentation``: equal to the published ones once their bases are merged, and all merge."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import third_party  # noqa: F401  (makes detectron2 and mask_former importable)
from detectron2.config import CfgNode, get_cfg
from segmentation.config import add_config
from tests.segmentation_recipes import reference, segmentation_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "segmentation"
FACTS = reference("zsseg_configs")
RELEASES = [
    (release, name)
    for release in ("zsseg", "pomp")
    for name, entry in FACTS[release].items()
    if "broken" not in entry  # upstream; the other release has the file
]


published_keys = cache(segmentation_config)


@cache
def all_keys() -> CfgNode:
    cfg = get_cfg()
    add_config(cfg)
    return cfg


@cache
def merged(path: Path) -> CfgNode:
    cfg = all_keys().clone()
    cfg.merge_from_file(str(path))
    return cfg


def leaves(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Every key with its value; tuples as lists, since files do not tell them apart."""
    found: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.loads(json.dumps(value))
    return found


def differences(path: Path) -> dict[str, Any]:
    before = leaves(all_keys())
    return {key: value for key, value in leaves(merged(path)).items() if value != before[key]}


def file_of(release: str, name: str) -> Path:
    """Where both releases publish a file of one name, POMP's has the name and ZSSeg's one of its own."""
    path = CONFIGS / name
    return path.with_stem(f"{path.stem}_zsseg") if release == "zsseg" and name in FACTS["pomp"] else path


@pytest.mark.parametrize(("release", "name"), RELEASES, ids=["/".join(each) for each in RELEASES])
def test_configs_resolve_to_the_published_values(release: str, name: str) -> None:
    entry = FACTS[release][name]
    expected = FACTS["parents"][entry["parent"]] | entry["set"]
    for key in entry.get("back_to_default", ()):
        del expected[key]
    defaults = leaves(published_keys())
    expected = {key: value for key, value in expected.items() if value != defaults[key]}
    assert differences(file_of(release, name)) == expected


def test_no_published_file_is_missing() -> None:
    assert {name for release in ("zsseg", "pomp") for name in FACTS[release]} <= {
        str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")
    }


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.stem}/{path.stem}")
def test_every_file_merges_and_says_only_what_differs_from_its_bases(path: Path) -> None:
    types = {key: type(value) for key, value in leaves(all_keys()).items() if value is not None}
    assert {key: type(value) for key, value in leaves(merged(path)).items() if key in types} == types

    content = CfgNode.load_yaml_with_base(str(path))
    own = _without_bases(path)
    bases = own.pop("_BASE_", [])
    inherited: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        inherited |= _flat(CfgNode.load_yaml_with_base(str(path.parent / base)))
    repeated = {key for key, value in _flat(own).items() if key in inherited and inherited[key] == value}
    assert not repeated
    assert _flat(content) == inherited | _flat(own)


def test_numbers_of_classes_fit_the_training_sets() -> None:
    expected = {"coco_2017_train_stuff_sem_seg": 171, "coco_2017_train_stuff_base_sem_seg": 156}
    expected |= {"voc_sem_seg_train": 20, "voc_base_sem_seg_train": 15, "shapeworld_stuff_base_sem_seg_train": 106}
    for path in CONFIGS.rglob("*.yaml"):
        cfg = merged(path)
        if cfg.MODEL.META_ARCHITECTURE in ("MaskFormer", "ZeroShotMaskFormer") and cfg.DATASETS.TRAIN:
            assert expected.get(cfg.DATASETS.TRAIN[0]) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, path


def _without_bases(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
