"""The files of ``configs/detection``: equal to the published ones once their bases are merged, and all of them load."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import third_party  # noqa: F401  (makes detectron2 and centernet importable)
from centernet.config import add_centernet_config
from detectron2.config import CfgNode, get_cfg

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "detection"
FACTS = json.loads(gzip.decompress((ROOT / "tests/golden/reference/detic_config_defaults.json.gz").read_bytes()))


def with_centernet_keys() -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    return cfg


def with_all_keys() -> CfgNode:
    from detection.task import add_config

    cfg = get_cfg()
    add_config(cfg)
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


def differences(defaults: CfgNode, path: Path) -> dict[str, Any]:
    cfg = defaults.clone()
    cfg.merge_from_file(str(path))
    before = leaves(defaults)
    return {key: value for key, value in leaves(cfg).items() if value != before[key]}


@pytest.mark.parametrize("name", [*FACTS["configs_detic"], *FACTS["configs_pomp"]])
def test_detic_and_pomp_configs_resolve_to_the_published_values(name: str) -> None:
    recorded = (FACTS["configs_detic"] | FACTS["configs_pomp"])[name]
    # A list of lists in place of an equal list of tuples was recorded as a difference.
    expected = {key: value for key, value in recorded.items() if value != FACTS["merged_defaults"].get(key)}
    assert differences(with_all_keys(), CONFIGS / f"{name}.yaml") == expected


@pytest.mark.parametrize("name", FACTS["configs_centernet2"])
def test_centernet2_configs_resolve_to_the_published_values(name: str) -> None:
    path = CONFIGS / "centernet2" / f"{name}.yaml"
    assert differences(with_centernet_keys(), path) == FACTS["configs_centernet2"][name]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_merges_with_the_keys_of_detection(path: Path) -> None:
    before = with_all_keys()
    cfg = before.clone()
    cfg.merge_from_file(str(path))
    types = {key: type(value) for key, value in leaves(before).items()}
    assert {key: type(value) for key, value in leaves(cfg).items()} == types


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_file_repeats_what_its_bases_say(path: Path) -> None:
    content = CfgNode.load_yaml_with_base(str(path))
    own = json.loads(json.dumps(_without_bases(path)))
    bases = own.pop("_BASE_", [])
    inherited: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        inherited |= _flat(CfgNode.load_yaml_with_base(str(path.parent / base)))
    repeated = {key for key, value in _flat(own).items() if key in inherited and inherited[key] == value}
    assert not repeated
    assert _flat(content) == inherited | _flat(own)


def _without_bases(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
