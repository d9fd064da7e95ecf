"""Properties of the configuration that its golden does not hold."""

import logging

import pytest
import yaml

from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg


def test_every_config_is_a_copy():
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS = "a.pth"
    cfg.INPUT.CROP.SIZE.append(1)
    assert get_cfg().MODEL.WEIGHTS == ""
    assert get_cfg().INPUT.CROP.SIZE == [0.9, 0.9]


def test_nested_defaults_keep_their_types():
    cfg = get_cfg()
    assert cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS[2] == (30.0, 30.0, 15.0, 15.0)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]


def test_dump_and_merge_give_the_same(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", "('a', 'b')", "SOLVER.BASE_LR", "0.5", "MODEL.WEIGHTS", "x: y.pth"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "config.yaml"))
    assert again.DATASETS.TRAIN == ("a", "b")
    assert (again.SOLVER.BASE_LR, again.MODEL.WEIGHTS) == (0.5, "x: y.pth")
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_clone_keeps_frozenness_and_shares_nothing():
    cfg = get_cfg()
    cfg.freeze()
    copy = cfg.clone()
    assert copy.is_frozen()
    copy.defrost()
    copy.MODEL.DEVICE = "cpu"
    assert cfg.MODEL.DEVICE == "cuda"
    assert cfg.is_frozen()


def test_new_keys_by_assignment_or_permission(tmp_path):
    (tmp_path / "new.yaml").write_text("VERSION: 2\nNEW:\n  KEY: 1\n  OTHER: 2\n")
    cfg = get_cfg()
    cfg.NEW = CfgNode()
    cfg.NEW.KEY = 0
    with pytest.raises(KeyError, match=r"NEW\.OTHER"):
        cfg.merge_from_file(str(tmp_path / "new.yaml"))
    cfg.NEW.set_new_allowed(True)
    cfg.merge_from_file(str(tmp_path / "new.yaml"))
    assert dict(cfg.NEW) == {"KEY": 1, "OTHER": 2}


def test_bases_form_chains_and_may_be_absolute_or_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("VERSION: 2\nSEED: 1\nSOLVER: {MAX_ITER: 1}\n")
    (tmp_path / "sub" / "b.yaml").write_text("_BASE_: ../a.yaml\nSEED: 2\n")
    (tmp_path / "c.yaml").write_text("_BASE_: sub/b.yaml\nVIS_PERIOD: 3\n")
    for base in (f"{tmp_path}/c.yaml", "~/c.yaml"):
        (tmp_path / "sub" / "d.yaml").write_text(f"_BASE_: {base}\n")
        cfg = get_cfg()
        cfg.merge_from_file(str(tmp_path / "sub" / "d.yaml"))
        assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.VIS_PERIOD) == (2, 1, 3)


def test_old_files_are_converted_and_newer_ones_refused(tmp_path, caplog, monkeypatch):
    (tmp_path / "old.yaml").write_text("MODEL: {WEIGHT: w}\nTEST: {AUG_ON: True, DETECTIONS_PER_IMG: 7}\n")
    cfg = get_cfg()
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)  # other tests set loggers up
    with caplog.at_level(logging.WARNING):
        cfg.merge_from_file(str(tmp_path / "old.yaml"))
    assert "old.yaml" in caplog.text
    assert (cfg.MODEL.WEIGHTS, cfg.TEST.AUG.ENABLED, cfg.TEST.DETECTIONS_PER_IMAGE) == ("w", True, 7)
    (tmp_path / "new.yaml").write_text("VERSION: 3\n")
    with pytest.raises(AssertionError, match="3"):
        cfg.merge_from_file(str(tmp_path / "new.yaml"))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="nowhere.yaml' does not exist"):
        get_cfg().merge_from_file(str(tmp_path / "nowhere.yaml"))


def test_the_global_config_is_one_object():
    cfg = get_cfg()
    cfg.SEED = 5
    set_global_cfg(cfg)
    assert global_cfg.SEED == 5
    set_global_cfg(get_cfg())
    assert global_cfg.SEED == -1


class Base:
    @configurable
    def __init__(self, *, size, name="base"):
        self.size, self.name = size, name

    @classmethod
    def from_config(cls, cfg, *args, **kwargs):
        return {"size": cfg.SEED, "name": f"{len(args)} {sorted(kwargs)}"}


def test_from_config_with_variadic_arguments_gets_everything():
    made = Base(get_cfg(), 1, 2, size=3)
    assert (made.size, made.name) == (-1, "2 ['size']")


def test_decorated_functions_keep_their_name_and_documentation():
    @configurable(from_config=lambda cfg: {"x": cfg.SEED})
    def build(x):
        """Builds."""
        return x

    assert (build.__name__, build.__doc__) == ("build", "Builds.")
    assert build(get_cfg()) == -1
    assert build(cfg=get_cfg()) == -1
    assert build(x=3) == 3


def test_wrong_use_of_configurable_is_an_error():
    with pytest.raises((TypeError, AssertionError)):

        @configurable
        def build(x):
            return x

    class Plain:
        @configurable
        def __init__(self, a):
            self.a = a

        def from_config(self, cfg):
            return {"a": 1}

    with pytest.raises(TypeError, match="classmethod"):
        Plain(get_cfg())
