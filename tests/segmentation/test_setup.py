"""From a command line to a config, and what is wrong with it before a model is built."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import segmentation  # noqa: F401  (makes detectron2 importable)
from detectron2.data import MetadataCatalog
from prompt_pretrain.errors import InputError
from segmentation.class_counts import check_class_counts, classes_of
from segmentation.setup import check_data_sets, load_config, setup
from segmentation.wandb_writer import check_wandb
from tests.segmentation.tiny_runs import TEST, TRAIN, command, parsed, registered, write_config
from tools.train_net import find_task


@pytest.fixture(autouse=True)
def data_sets(tmp_path: Path) -> Iterator[None]:
    with registered(tmp_path / "data"):
        yield


def test_train_net_finds_segmentation(tmp_path: Path) -> None:
    assert find_task(parsed(["--config-file", str(write_config(tmp_path))])) == "segmentation"
    assert find_task(parsed(["--config-file", str(write_config(tmp_path, stage=1))])) == "segmentation"
    assert find_task(parsed(["MODEL.META_ARCHITECTURE", "MaskFormer"])) == "segmentation"


def test_config_is_frozen_and_written(tmp_path: Path) -> None:
    cfg = setup(parsed(command(tmp_path, "SEED", "4")))
    assert cfg.is_frozen() and cfg.SEED == 4
    assert json.dumps(load_config(tmp_path / "run/config.yaml")) == json.dumps(cfg)


def test_config_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="PROMPT_LEARNER"):
        load_config("", ["MODEL.CLIP_ADAPTER.PROMPT_LEARNERS", "vild"])
    with pytest.raises(InputError, match="nix.yaml"):
        load_config(tmp_path / "nix.yaml")


def test_data_set_errors(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path))
    check_data_sets(cfg, [TRAIN, TEST])
    with pytest.raises(InputError, match="'voc_sem_seg_tests' .* not registered; did you mean voc_sem_seg_test"):
        check_data_sets(cfg, ["voc_sem_seg_tests"])
    (tmp_path / "data/all").rename(tmp_path / "data/moved")
    with pytest.raises(InputError, match=f"data set {TEST}: folder .*all not found; data sets lie below"):
        check_data_sets(cfg, [TRAIN, TEST])


def test_numbers_of_classes_must_agree(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path))
    check_class_counts(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    check_class_counts(cfg, eval_only=True)  # text features of any classes
    with pytest.raises(InputError, match=f"{TRAIN} has 3 classes, but .*SEM_SEG_HEAD.NUM_CLASSES is 5; set it to 3$"):
        check_class_counts(cfg)
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    with pytest.raises(InputError, match=f"{TEST} has 4 classes, .* is 5; set it to 4 and train again"):
        check_class_counts(cfg, eval_only=True)
    cfg.MODEL.META_ARCHITECTURE = "ProposalClipClassifier"
    check_class_counts(cfg)


def test_training_needs_seen_classes_and_names(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path))
    MetadataCatalog.get(TRAIN).trainable_flag[:] = [0, 0, 0]
    with pytest.raises(InputError, match=f"{TRAIN} of DATASETS.TRAIN has no seen class"):
        check_class_counts(cfg)
    with pytest.raises(InputError, match="data set nameless has no class names; set stuff_classes"):
        classes_of("nameless")
    MetadataCatalog.remove("nameless")


def test_wandb_is_asked_for_by_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(write_config(tmp_path))
    check_wandb(cfg)
    cfg.WANDB.NAME = "mine"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="WANDB.NAME needs the package wandb; pip install wandb"):
        check_wandb(cfg)
