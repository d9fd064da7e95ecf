"""The config hook against the published defaults."""

import gzip
import json
from typing import Any

from centernet.config import add_centernet_config
from detectron2.config import CfgNode, get_cfg
from tests.golden_recipes import RELEASED_CONFIGS, apply_settings


def leaves(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return found


def test_added_keys_have_the_published_defaults_and_types() -> None:
    published = json.loads(gzip.decompress(RELEASED_CONFIGS.read_bytes()))
    before = leaves(get_cfg())
    cfg = get_cfg()
    add_centernet_config(cfg)
    added = {key: value for key, value in leaves(cfg).items() if key not in before}
    expected = {
        key: tuple(value) if key in published["tuple_valued_keys"] else value
        for key, value in published["added_by_centernet"].items()
        if key not in before
    }
    assert added == expected
    assert {key: type(value) for key, value in added.items()} == {key: type(value) for key, value in expected.items()}


def test_every_released_config_of_centernet2_merges() -> None:
    published = json.loads(gzip.decompress(RELEASED_CONFIGS.read_bytes()))
    for settings in published["configs_centernet2"].values():
        cfg = get_cfg()
        add_centernet_config(cfg)
        apply_settings(cfg, settings)
        found = leaves(cfg)
        assert {key: as_json(found[key]) for key in settings} == settings


def as_json(value: Any) -> Any:
    """Tuples as lists."""
    return json.loads(json.dumps(value))
