"""Configuration against the recorded behaviour of detectron2."""

import re

import pytest

from detectron2.config import CfgNode, configurable, get_cfg


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def as_json(value):
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def check(merge, expected):
    """``merge`` changes a fresh config as ``expected``, or raises the same error; messages may go on."""
    cfg = get_cfg()
    defaults = dict(leaves(cfg))
    if "error" in expected:
        with pytest.raises((AssertionError, KeyError, ValueError)) as caught:
            merge(cfg)
        assert caught.type.__name__ == expected["error"]
        assert str(caught.value).strip("'").startswith(expected["message"].strip("'"))
        return
    merge(cfg)
    changed = {
        key: [type(value).__name__, as_json(value)]
        for key, value in leaves(cfg)
        if value != defaults[key] or type(value) is not type(defaults[key])
    }
    assert changed == expected["changed"]


@pytest.mark.golden("d2_config")
def test_config(golden, tmp_path):
    folder = tmp_path / "cfgs"  # one of the files names its base as ../cfgs/base.yaml
    folder.mkdir()
    for name, text in golden.meta["files"].items():
        (folder / name).write_text(text)
    for name, expected in golden.meta["results"].items():
        check(lambda cfg, name=name: cfg.merge_from_file(str(folder / name)), expected)
    for case in golden.meta["overrides"].values():
        check(lambda cfg, case=case: cfg.merge_from_list(case["list"]), case)
    check_freezing(golden.meta["frozen"])
    check_configurable(golden.meta["configurable"])


def check_freezing(expected):
    cfg = get_cfg()
    cfg.freeze()

    def attempt(node, name, value):
        try:
            setattr(node, name, value)
        except (AttributeError, KeyError) as error:
            return type(error).__name__
        return "ok"

    assert {
        "set_known": attempt(cfg, "SEED", 1),
        "set_new": attempt(cfg, "NEW", 1),
        "nested": attempt(cfg.MODEL, "DEVICE", "cpu"),
        "computed": attempt(cfg, "COMPUTED_X", 3),
        "computed_again_same": attempt(cfg, "COMPUTED_X", 3),
        "computed_again_other": attempt(cfg, "COMPUTED_X", 4),
    } == expected


class A:
    @configurable
    def __init__(self, a, b=2, c=3):
        self.values = [a, b, c]

    @classmethod
    def from_config(cls, cfg):
        return {"a": cfg.SEED, "b": cfg.VERSION}


class B(A):
    @configurable
    def __init__(self, *, d=0, **kwargs):
        super().__init__(**kwargs)
        self.values.append(d)

    @classmethod
    def from_config(cls, cfg, extra):
        return super().from_config(cfg) | {"d": extra}


class WithoutFromConfig:
    @configurable
    def __init__(self, a=1):
        self.values = [a]


class WithWrongFirstParameter:
    @configurable
    def __init__(self, a=1):
        self.values = [a]

    @classmethod
    def from_config(cls, config):
        return {"a": 1}


@configurable(from_config=lambda cfg, scale=1: {"x": cfg.VERSION * scale})
def func(x, y=1):
    return [x, y]


def check_configurable(recorded):
    cfg = get_cfg()
    for key, value in re.findall(r"(SEED|VERSION) (\d+)", recorded["classes"]):
        cfg[key] = int(value)
    names = {"A": A, "B": B, "N": WithoutFromConfig, "F": WithWrongFirstParameter, "func": func, "cfg": cfg}

    def outcome(call):
        try:
            made = eval(call.partition(")")[0] + ")", names)  # words may follow the call
        except (AttributeError, TypeError) as error:
            return type(error).__name__
        return getattr(made, "values", made)

    assert {call: outcome(call) for call in recorded["results"]} == recorded["results"]
