"""Evaluators of segmentation against recorded numbers."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation  # noqa: F401
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from segmentation.evaluation import (
    ClassificationEvaluator,
    GeneralizedPseudoSemSegEvaluator,
    GeneralizedSemSegEvaluator,
)
from tests.golden_files import Golden


@pytest.mark.golden("zsseg_evaluator")
def test_evaluators(golden: Golden, tmp_path: Path) -> None:
    compared = 0
    for key, expected in golden.meta["expected"].items():
        kind, _, name = key.partition(":")
        if kind == "sem_seg":
            with registered(golden, name, tmp_path / "labels") as records:
                evaluator = GeneralizedSemSegEvaluator(name, False, str(tmp_path / name))
                check(golden, run(evaluator, golden, records)["sem_seg"], expected)
                if name == next(key for key in golden.meta["expected"] if key.startswith("sem_seg")).partition(":")[2]:
                    assert evaluator.confusion_matrix.tolist() == golden.meta["expected"]["confusion_pred_by_gt"]
                    check_predictions(golden, tmp_path / name / "sem_seg_predictions.json")
        elif kind == "pseudo":
            options = dict(option.split("=") for option in name.split(","))
            prior, reject = options["prior"] == "True", float(options.get("reject", 0))
            with registered(golden, "ge_nomap", tmp_path / "labels") as records:
                pseudo = GeneralizedPseudoSemSegEvaluator("ge_nomap", False, with_prior=prior, reject_threshold=reject)
                check(golden, run(pseudo, golden, records)["sem_seg"], expected)
            matrix = golden.meta["expected"].get(f"pseudo_confusion:{name.split(',')[-1]}")
            assert matrix is None or pseudo.confusion_matrix.tolist() == matrix
        elif kind == "classification":
            with registered(golden, "ge_cls", tmp_path / "labels"):
                classifier = ClassificationEvaluator("ge_cls", False)
                for logits, label in zip(golden.arrays["cls_logits"], golden.arrays["cls_labels"], strict=True):
                    classifier.process([{"category_id": int(label)}], [{"classification": torch.tensor(logits)[None]}])
                check(golden, classifier.evaluate() or {}, expected, rtol=1e-6)  # recorded in float32
        else:
            continue
        compared += 1
    assert compared


def run(evaluator: DatasetEvaluator, golden: Golden, records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for index, record in enumerate(records):
        names = (re.fullmatch(rf"scores_x(\d+)_{index}", name) for name in golden.arrays)
        name = next(match for match in names if match)
        scores = golden.arrays[name[0]].astype(np.float32) / int(name[1])
        evaluator.process([record], [{"sem_seg": torch.from_numpy(scores)}])
    return evaluator.evaluate() or {}


def check(golden: Golden, found: dict[str, float], expected: dict[str, float | None], rtol: float = 0) -> None:
    rtol = rtol or float(re.findall(r"[\d.]+(?:e-?\d+)?", golden.meta["tolerance"])[0])
    assert set(found) == set(expected)
    for name, value in expected.items():
        value = math.nan if value is None else value
        assert found[name] == pytest.approx(value, rel=rtol, nan_ok=True), name


def check_predictions(golden: Golden, file: Path) -> None:
    predictions = json.loads(file.read_text())
    assert len(predictions) == golden.meta["expected"]["num_predictions"]
    for found, expected in zip(predictions, golden.meta["expected"]["predictions_head"], strict=False):
        assert found["category_id"] == expected["category_id"]
        assert found["segmentation"] == {"size": expected["size"], "counts": expected["counts"]}


@contextmanager
def registered(golden: Golden, name: str, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The label maps of the file as a data set; the sentences of ``metadata`` say what each name has."""
    folder.mkdir(exist_ok=True)
    maps = [golden.arrays[f"gt_{index}"] for index in range(sum(key.startswith("gt_") for key in golden.arrays))]
    records = []
    for index, labels in enumerate(maps):
        Image.fromarray(labels).save(folder / f"{index}.png")
        records.append({"file_name": f"image{index}.jpg", "sem_seg_file_name": str(folder / f"{index}.png")})
    meta = golden.meta["metadata"]
    values: dict[str, Any] = {"stuff_classes": meta["stuff_classes"], "ignore_label": meta["ignore_label"]}
    flag = next((value for key, value in meta.items() if key.startswith("trainable_flag")), None)
    sets = next(value for key, value in meta.items() if key.startswith("evaluation_set"))
    if name != "ge_plain":
        values |= {"evaluation_set": sets, "trainable_flag": flag}
    if name != "ge_nomap":
        ids = [int(number) for number in re.findall(r"\d+", meta["stuff_dataset_id_to_contiguous_id"].split("]")[0])]
        values["stuff_dataset_id_to_contiguous_id"] = {category: label for label, category in enumerate(ids)}
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**values)
    try:
        yield records
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
