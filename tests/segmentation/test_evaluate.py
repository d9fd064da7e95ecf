"""Evaluation of a config's test sets: evaluators, folders, augmentation, reports."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import segmentation  # noqa: F401  (makes detectron2 importable)
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from prompt_pretrain.errors import InputError
from segmentation.evaluate import build_evaluator, do_test, evaluate_on
from segmentation.evaluation import (
    ClassificationEvaluator,
    GeneralizedPseudoSemSegEvaluator,
    GeneralizedSemSegEvaluator,
)
from segmentation.setup import load_config
from tests.segmentation.tiny_runs import CLASS_NAMES, TEST, TRAIN, registered, write_config


@pytest.fixture
def cfg(tmp_path: Path) -> Iterator[CfgNode]:
    with registered(tmp_path / "data"):
        plain = ["MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE", "False", "OUTPUT_DIR", str(tmp_path / "run")]
        yield load_config(write_config(tmp_path), plain)


def test_several_test_sets_have_folders_of_their_own(cfg: CfgNode) -> None:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    alone = do_test(cfg, model, config_name="x/y")
    run = Path(cfg.OUTPUT_DIR)
    assert (run / "inference/sem_seg_predictions.json").is_file()
    assert {"mIoU", "hIoU-base", f"IoU-{CLASS_NAMES[3]}"} <= alone["sem_seg"].keys()

    cfg.DATASETS.TEST = (TEST, TRAIN)
    both = do_test(cfg, model)
    assert both[TEST] == alone and both.keys() == {TEST, TRAIN}
    assert (run / f"inference/{TRAIN}/sem_seg_predictions.json").is_file()
    saved = json.loads((run / "results.json").read_text())
    assert saved[TEST]["sem_seg"]["mIoU"] == alone["sem_seg"]["mIoU"]
    assert f"| {TRAIN} | here |" in (run / "results.md").read_text()


def test_augmented_evaluation(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    plain = do_test(cfg, model)
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = True, (48,), False
    assert do_test(cfg, model)["sem_seg_TTA"] == pytest.approx(plain["sem_seg"], nan_ok=True)
    assert (Path(cfg.OUTPUT_DIR) / "inference_TTA/sem_seg_predictions.json").is_file()
    assert "here, augmented" in (Path(cfg.OUTPUT_DIR) / "results.md").read_text()

    cfg.TEST.AUG.ENABLED, cfg.TEST.SLIDING_WINDOW, cfg.DATASETS.TEST = False, True, ()
    assert evaluate_on(cfg, model) == {}
    assert "nothing to evaluate" in caplog.text
    cfg.DATASETS.TEST = (TEST,)
    evaluate_on(cfg, model)
    assert "TEST.SLIDING_WINDOW has no effect without TEST.AUG.ENABLED True" in caplog.text


def test_evaluator_follows_the_metadata_and_the_config(cfg: CfgNode, tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    assert type(build_evaluator(cfg, TEST, folder)) is GeneralizedSemSegEvaluator
    assert isinstance(build_evaluator(cfg, f"{TEST}_classification", folder), ClassificationEvaluator)
    cfg.PSEUDO = True
    assert isinstance(build_evaluator(cfg, TEST, folder), GeneralizedPseudoSemSegEvaluator)
    MetadataCatalog.get(TEST).__dict__["evaluator_type"] = "ade20k_panoptic_seg"
    assert isinstance(build_evaluator(cfg, TEST, folder), GeneralizedPseudoSemSegEvaluator)
    MetadataCatalog.get(TEST).__dict__["evaluator_type"] = "x"
    with pytest.raises(InputError, match=f"data set {TEST} has the evaluator_type 'x', expected one of sem_seg"):
        build_evaluator(cfg, TEST, folder)
