"""Evaluation on every test set of a config, each with class embeddings of its own if asked for; one table of all."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from detection.data.transforms import build_custom_augmentation
from detection.evaluation.coco_zeroshot import CustomCOCOEvaluator
from detection.evaluation.oid import OIDEvaluator
from detection.evaluation_table import results_table
from detection.reset_classifier import reset_cls_test
from detection.zero_shot_classifier import ZeroShotClassifier
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.utils import comm
from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.errors import InputError
from prompt_pretrain.metrics_log import finite_or_none
from prompt_pretrain.run_setup import explained_data
from third_party import detectron2_source

__all__ = ["build_evaluator", "classifier_restored", "do_test"]
_log = logging.getLogger(__name__)
# Its 65 annotated classes fall into seen and unseen ones.
_SEEN_AND_UNSEEN = "coco_generalized_zeroshot_val"


def do_test(cfg: CfgNode, model: nn.Module, *, config_name: str = "") -> dict[str, Any]:
    """Evaluate ``model`` on each data set of DATASETS.TEST; a collective call.

    With RESET_CLS_TESTS each set has the classifier of its TEST_CLASSIFIERS; afterwards the model has its own again.
    Detections and metrics of a set go to ``OUTPUT_DIR/inference_<name>``, all metrics to ``results.json`` and, as a
    table beside the published numbers, to ``results.md`` in OUTPUT_DIR.

    Args:
        model: of ``build_model``, maybe in DistributedDataParallel; its mode stays as it is.
        config_name: of the published config, whose numbers the table shows.
    Returns:
        The metrics of the data set, as ``{"bbox": {"AP": ...}, ...}``; of several, data set -> metrics. Empty except
        on the main process.
    Raises:
        InputError: the evaluator of a data set is unknown, or classifiers are missing.
    """
    tests, classifiers = list(cfg.DATASETS.TEST), list(cfg.MODEL.TEST_CLASSIFIERS)
    counts = list(cfg.MODEL.TEST_NUM_CLASSES)
    if not tests:
        _log.warning("nothing to evaluate: DATASETS.TEST is empty")
        return {}
    if cfg.MODEL.RESET_CLS_TESTS and not len(tests) == len(classifiers) == len(counts):
        raise InputError(
            f"MODEL.RESET_CLS_TESTS needs TEST_CLASSIFIERS and TEST_NUM_CLASSES for each of the {len(tests)} data sets "
            f"of DATASETS.TEST, found {len(classifiers)} and {len(counts)}"
        )
    results: dict[str, Any] = {}
    with classifier_restored(model):
        for index, name in enumerate(tests):
            if cfg.MODEL.RESET_CLS_TESTS:
                reset_cls_test(model, classifiers[index], counts[index])
            results[name] = _test_on(cfg, model, name)
    if not comm.is_main_process():
        return {}
    table = results_table(results, config_name)
    _log.info("results in percent:\n%s", table)
    with atomic_writer(os.path.join(cfg.OUTPUT_DIR, "results.md"), "w") as file:
        file.write(table + "\n")
    write_json(os.path.join(cfg.OUTPUT_DIR, "results.json"), finite_or_none(results))
    return next(iter(results.values())) if len(results) == 1 else results


def build_evaluator(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator that the data set's ``evaluator_type`` names; of LVIS for any one with GEN_PSEDO_LABELS.

    Raises:
        InputError: another type than lvis, coco or oid, or annotations that lack what their metric needs.
    """
    kind, file = MetadataCatalog.get(name).get("evaluator_type"), _annotations_of(name)
    if kind == "lvis" or cfg.GEN_PSEDO_LABELS:
        _let_lvis_run()
        with explained_data(f"data set {name} cannot be evaluated as LVIS", file):
            return LVISEvaluator(name, output_dir=output_dir)
    if kind == "coco":
        two_groups = name == _SEEN_AND_UNSEEN or MetadataCatalog.get(name).get("unseen_classes")
        with explained_data(f"data set {name} cannot be evaluated as COCO", file):
            return (CustomCOCOEvaluator if two_groups else COCOEvaluator)(name, output_dir=output_dir)
    if kind == "oid":
        return OIDEvaluator(name, cfg, True, output_dir)
    raise InputError(f"data set {name} has the evaluator_type {kind!r}, expected coco, lvis or oid in its metadata")


@contextmanager
def classifier_restored(model: nn.Module) -> Iterator[None]:
    """The block may set other classifiers; afterwards the model has its own, in its state dict as before."""
    inner = getattr(model, "module", model)
    heads = getattr(inner, "roi_heads", None)
    if heads is None:
        yield
        return
    layers = [module for module in heads.modules() if isinstance(module, ZeroShotClassifier)]
    weights = [(layer.zs_weight, "zs_weight" in layer.state_dict()) for layer in layers]
    counts = [(module, module.num_classes) for module in heads.modules() if hasattr(module, "num_classes")]
    try:
        yield
    finally:
        for layer, (weight, persistent) in zip(layers, weights, strict=True):
            if layer.zs_weight is not weight:
                del layer.zs_weight
                if isinstance(weight, nn.Parameter):
                    layer.zs_weight = weight
                else:
                    layer.register_buffer("zs_weight", weight, persistent=persistent)
        for module, count in counts:
            module.num_classes = count


def _test_on(cfg: CfgNode, model: nn.Module, name: str) -> dict[str, Any]:
    mapper = None
    if cfg.INPUT.TEST_INPUT_TYPE != "default":
        mapper = DatasetMapper(cfg, False, augmentations=build_custom_augmentation(cfg, False))
    with explained_data():
        loader = build_detection_test_loader(cfg, name, mapper=mapper)
    evaluator = build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, f"inference_{name}"))
    tested = _with_test_time_augmentation(cfg, model) if cfg.TEST.AUG.ENABLED else model
    results = inference_on_dataset(tested, loader, _Explained(evaluator, name)) or {}
    if comm.is_main_process():
        _log.info("results on %s in csv format:", name)
        print_csv_format(results)
    return dict(results)


class _Explained(DatasetEvaluator):
    """An evaluator for which annotations that turn out wrong when results are compared are bad input."""

    def __init__(self, evaluator: DatasetEvaluator, name: str) -> None:
        self._evaluator, self._name = evaluator, name

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        with explained_data(f"data set {self._name} cannot be evaluated", _annotations_of(self._name)):
            return self._evaluator.evaluate()


def _annotations_of(name: str) -> str:
    return str(MetadataCatalog.get(name).get("json_file") or "")


def _with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model on several sizes of an image and their mirror images, as TEST.AUG says."""
    inner = getattr(model, "module", model)
    if not isinstance(inner, GeneralizedRCNN):
        raise InputError(f"TEST.AUG.ENABLED needs a two-stage detector, {cfg.MODEL.META_ARCHITECTURE} is none")
    own = cfg.clone()
    own.defrost()
    own.MODEL.ROI_HEADS.NUM_CLASSES = inner.roi_heads.num_classes  # the test set's, if it has its own
    # In the mode of the model inside, which it returns to after the evaluation.
    return GeneralizedRCNNWithTTA(own, inner).train(inner.training)


def _let_lvis_run() -> None:
    """The lvis package, which the real detectron2's evaluator uses, needs an alias that NumPy has removed."""
    if detectron2_source() == "installed" and not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]
