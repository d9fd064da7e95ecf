"""Semantic-segmentation metrics against recorded results, and against slow loops."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from tests.third_party.detectron2.evaluation_data import new_name, same_metrics


def _register(folder, label_maps, names=("a", "b", "c"), ignore_label=255, image_name="img0.jpg", **metadata):
    """Write label maps as images and register them; returns the name of the data set."""
    records = []
    for index, labels in enumerate(label_maps):
        file = folder / f"gt{index}.{'png' if labels.dtype == np.uint8 else 'tif'}"
        Image.fromarray(labels).save(file)
        records.append({"file_name": image_name.replace("0", str(index)), "sem_seg_file_name": str(file)})
    name = new_name()
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=list(names), ignore_label=ignore_label, **metadata)
    return name


def _run(evaluator, scores):
    evaluator.reset()
    for file_name, score in zip(evaluator.input_file_to_gt_file, scores, strict=True):
        evaluator.process([{"file_name": file_name}], [{"sem_seg": torch.as_tensor(score)}])
    return evaluator.evaluate()


@pytest.mark.golden("d2_sem_seg_eval")
def test_sem_seg_results_match_the_recording(golden, tmp_path):
    meta, arrays = golden.meta, golden.arrays
    count = sum(name.startswith("gt") for name in arrays)
    names = [key.removeprefix("ACC-") for key in meta["results"]["sem_seg"] if key.startswith("ACC-")]
    factor = int(re.search(r"written as (\d+)c", meta["dataset_id_rule"]).group(1))
    name = _register(
        tmp_path,
        [arrays[f"gt{i}"] for i in range(count)],
        names,
        ignore_label=int(re.search(r"ignore (\d+)", meta["inputs"]).group(1)),
        image_name=meta["predictions_json_first"]["file_name"],
        stuff_dataset_id_to_contiguous_id={factor * c: c for c in range(len(names))},
    )
    evaluator = SemSegEvaluator(name, output_dir=str(tmp_path / "out"))
    results = _run(evaluator, [arrays[f"logits{i}"] for i in range(count)])
    same_metrics(results, meta["results"], float(meta["tolerance"]))
    assert (evaluator._conf_matrix == arrays["conf_matrix"]).all()
    written = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert len(written) == meta["predictions_json_count"]
    assert written[0] == meta["predictions_json_first"]
