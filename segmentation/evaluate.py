"""Evaluation on every test set of a config, plain or with test-time augmentation; one table of all."""

import logging
import os
from pathlib import Path
from typing import Any

from torch import nn

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.errors import InputError
from prompt_pretrain.metrics_log import finite_or_none
from prompt_pretrain.run_setup import explained_data
from segmentation.class_embedding_hook import use_vocabulary
from segmentation.data import build_test_loader
from segmentation.evaluation import (
    ClassificationEvaluator,
    GeneralizedPseudoSemSegEvaluator,
    GeneralizedSemSegEvaluator,
    dense_crf,
)
from segmentation.evaluation_table import results_table
from segmentation.test_time_augmentation import SemanticSegmentorWithTTA

__all__ = ["build_evaluator", "do_test", "evaluate_on", "write_report"]
_log = logging.getLogger(__name__)

_SEMANTIC = ("sem_seg", "ade20k_panoptic_seg", "cityscapes_sem_seg")


def do_test(cfg: CfgNode, model: nn.Module, *, config_name: str = "") -> dict[str, Any]:
    """Evaluate ``model`` on each data set of DATASETS.TEST, with augmentation if TEST.AUG asks; a collective call.

    Metrics go to ``results.json`` and, as a table beside the published numbers, to ``results.md`` in OUTPUT_DIR.

    Args:
        config_name: of the published config, whose numbers the table shows.
    Returns:
        The metrics of the data set, as ``{"sem_seg": {"mIoU": ...}}``; of several, data set -> metrics. Empty except
        on the main process.
    """
    results = evaluate_on(cfg, model, augmented=cfg.TEST.AUG.ENABLED)
    write_report(cfg, results, config_name)
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_on(cfg: CfgNode, model: nn.Module, *, augmented: bool = False) -> dict[str, Any]:
    """Data set -> metrics; a collective call. Empty except on the main process.

    Predictions of a data set go to ``OUTPUT_DIR/inference``, of several to a folder of each in it. With ``augmented``
    the folder is ``inference_TTA``, and names of metrics end with ``_TTA``.

    Raises:
        InputError: the evaluator of a data set is unknown.
    """
    names = list(cfg.DATASETS.TEST)
    if not names:
        _log.warning("nothing to evaluate: DATASETS.TEST is empty")
        return {}
    if cfg.TEST.SLIDING_WINDOW and not augmented:
        _log.warning("TEST.SLIDING_WINDOW has no effect without TEST.AUG.ENABLED True")
    folder = Path(cfg.OUTPUT_DIR) / ("inference_TTA" if augmented else "inference")
    segmentor = SemanticSegmentorWithTTA(cfg, model) if augmented else model
    results: dict[str, Any] = {}
    for name in names:
        use_vocabulary(cfg, model, name)
        evaluator = build_evaluator(cfg, name, str(folder / name if len(names) > 1 else folder))
        found = inference_on_dataset(segmentor, build_test_loader(cfg, name), evaluator) or {}
        if comm.is_main_process():
            _log.info("results on %s in csv format:", name)
            print_csv_format(found)
            results[name] = {f"{key}_TTA": value for key, value in found.items()} if augmented else dict(found)
    use_vocabulary(cfg, model, cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else None)
    return results


def build_evaluator(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator that the data set's ``evaluator_type`` names; of label maps, with PSEUDO that of pseudo labels.

    Raises:
        InputError: another type than sem_seg, ade20k_panoptic_seg, cityscapes_sem_seg, classification or coco.
    """
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind in _SEMANTIC:
        post_process = dense_crf if cfg.TEST.DENSE_CRF else None
        if not cfg.PSEUDO:
            return GeneralizedSemSegEvaluator(name, output_dir=output_dir, post_process_func=post_process)
        return GeneralizedPseudoSemSegEvaluator(
            name,
            output_dir=output_dir,
            with_prior=cfg.PSEUDO_WITH_PRIOR,
            reject_threshold=cfg.PSEUDO_REJECT_THRESHOLD,
            post_process_func=post_process,
        )
    if kind == "classification":
        return ClassificationEvaluator(name, output_dir=output_dir)
    if kind == "coco":
        with explained_data(
            f"data set {name} cannot be evaluated", str(MetadataCatalog.get(name).get("json_file") or "")
        ):
            return COCOEvaluator(name, output_dir=output_dir)
    raise InputError(
        f"data set {name} has the evaluator_type {kind!r}, expected one of {', '.join(_SEMANTIC)}, classification or "
        "coco in its metadata"
    )


def write_report(cfg: CfgNode, results: dict[str, Any], config_name: str = "") -> None:
    """Write ``results.json`` and ``results.md`` on the main process, and log the table."""
    if not comm.is_main_process() or not results:
        return
    table = results_table(results, config_name)
    _log.info("results in percent:\n%s", table)
    with atomic_writer(os.path.join(cfg.OUTPUT_DIR, "results.md"), "w") as file:
        file.write(table + "\n")
    write_json(os.path.join(cfg.OUTPUT_DIR, "results.json"), finite_or_none(results))
