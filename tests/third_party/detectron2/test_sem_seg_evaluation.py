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


def test_metrics_are_those_of_a_slow_count(tmp_path):
    random = np.random.default_rng(0)
    maps = [random.integers(0, 4, (9, 11)).astype(np.uint8) for _ in range(3)]
    for labels in maps:
        labels[labels == 3] = 255
    scores = [random.normal(size=(3, 9, 11)).astype(np.float32) for _ in maps]
    results = _run(SemSegEvaluator(_register(tmp_path, maps), distributed=False), scores)["sem_seg"]
    pairs = [
        (int(gt), int(score[:, y, x].argmax()))
        for labels, score in zip(maps, scores, strict=True)
        for (y, x), gt in np.ndenumerate(labels)
        if gt != 255
    ]
    for index, name in enumerate("abc"):
        both = sum(gt == index and predicted == index for gt, predicted in pairs)
        either = sum(gt == index or predicted == index for gt, predicted in pairs)
        own = sum(gt == index for gt, _ in pairs)
        assert results[f"IoU-{name}"] == pytest.approx(100 * both / either)
        assert results[f"ACC-{name}"] == pytest.approx(100 * both / own)
    assert results["mIoU"] == pytest.approx(np.mean([results[f"IoU-{name}"] for name in "abc"]))
    assert results["pACC"] == pytest.approx(100 * np.mean([gt == predicted for gt, predicted in pairs]))


def test_label_maps_of_16_bits_are_read(tmp_path):
    labels = np.zeros((6, 6), dtype=np.uint16)
    labels[:, 3:] = 299
    names = [f"k{i}" for i in range(300)]
    scores = np.zeros((300, 6, 6), dtype=np.float32)
    scores[0, :, :3] = scores[299, :, 3:] = 1
    name = _register(tmp_path, [labels], names=names, ignore_label=65535)
    results = _run(SemSegEvaluator(name, distributed=False), [scores])["sem_seg"]
    assert results["mIoU"] == pytest.approx(100)
    assert not any(key.startswith("Boundary") for key in results)


def test_images_count_by_their_pixels_in_any_order(tmp_path):
    random = np.random.default_rng(1)
    maps = [random.integers(0, 3, (4 + 3 * i, 7)).astype(np.uint8) for i in range(3)]
    scores = [random.normal(size=(3, *labels.shape)) for labels in maps]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    forward = _run(SemSegEvaluator(_register(tmp_path / "a", maps), distributed=False), scores)
    backward = _run(SemSegEvaluator(_register(tmp_path / "b", maps[::-1]), distributed=False), scores[::-1])
    assert forward["sem_seg"] == pytest.approx(backward["sem_seg"])
