"""COCO and LVIS evaluation: ours against pycocotools and lvis on the same made-up detections.

    python tools/benchmarks/evaluation.py [--quick] [--json FILE]

Both start from a model's detections and end with AP; annotations have been read before. Prints the times, how many
times faster we are, and by how much any metric of boxes or masks differs, in points; also label map and confusion
matrix of segmentation, from scores or labels of COCO-Stuff's 171 classes, against torch and numpy and against reading
them once. Without ``--quick`` also the time and the peak memory of an input of the size of LVIS' validation set (20,000
images with 300 detections each).
"""

import json
import logging
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _package_first  # noqa: F401  (before anything of ours)
import numpy as np
import torch
from _records import Record, fastest, parse_arguments, report
from _synthetic_detections import SyntheticWorld, World, lvis_metrics, pycocotools_metrics, read_coco
from lvis import LVIS
from torch import Tensor

import third_party  # noqa: F401  makes detectron2 importable
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from segmentation.class_argmax import argmax_over_classes
from segmentation.evaluation.confusion import ConfusionMatrix


def main() -> int:
    options = parse_arguments(__doc__)
    logging.disable(logging.WARNING)
    images = 300 if options.quick else 1000
    records, differences = [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("coco", "lvis"):
            for task in ("bbox", "segm"):
                seconds, reference, difference = compare(kind, task, images // (2 if task == "segm" else 1), folder)
                name = f"evaluation/{kind}" + ("" if task == "bbox" else "_masks")
                records.append(Record(f"{name}_ratio", reference / seconds, "x", ratio=reference / seconds))
                records.append(Record(f"{name}_s", seconds, "s", reference, reference / seconds))
                differences.append(difference)
    records.append(Record("evaluation/max_difference", max(differences), "points"))
    records += confusion_matrix()
    if not options.quick:
        records += whole_validation_set()
    report(records, options.json)
    return 0


def compare(kind: str, task: str, images: int, folder: str) -> tuple[float, float, float]:
    """Seconds of ours and of the reference, and the largest difference of a metric in points."""
    federated = kind == "lvis"
    world = SyntheticWorld(
        images,
        num_classes=1203 if federated else 80,
        detections_per_image=300 if federated else 100,
        federated=federated,
        masks=task == "segm",
    ).draw()
    path = str(Path(folder) / f"{kind}_{task}.json")
    Path(path).write_text(json.dumps(world.annotations))
    evaluator = make_evaluator(kind, task, path)
    start = time.process_time()
    results = run(evaluator, world)[task]
    seconds = time.process_time() - start

    annotations = LVIS(path) if federated else read_coco(path)
    start = time.process_time()
    detections = [
        item for image_id, instances in world.detections.items() for item in with_category_ids(instances, image_id)
    ]
    expected = (lvis_metrics if federated else pycocotools_metrics)(annotations, detections, task)
    reference = time.process_time() - start
    return seconds, reference, max(difference(results[name], value) for name, value in expected.items())


def confusion_matrix(num_classes: int = 171, size: tuple[int, int] = (480, 640)) -> list[Record]:
    """From an image's scores to its label map, and from scores or label map to counts."""
    coarse = torch.rand(1, num_classes, size[0] // 32, size[1] // 32)
    scores = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[0]
    truth = torch.randint(num_classes, size)
    matrix = ConfusionMatrix(num_classes)

    labels = scores.argmax(0)

    def counted_by_numpy() -> np.ndarray:
        index = labels.numpy() * (num_classes + 1) + truth.numpy()
        return np.bincount(index.ravel(), minlength=(num_classes + 1) ** 2)

    def all_by_numpy() -> np.ndarray:
        index = scores.numpy().argmax(axis=0) * (num_classes + 1) + truth.numpy()
        return np.bincount(index.ravel(), minlength=(num_classes + 1) ** 2)

    def copy_of(data: Tensor) -> Callable[[], object]:
        place = torch.empty_like(data)  # memory that is new to the process would take longer than the copy
        return lambda: place.copy_(data)

    pairs: list[tuple[str, Callable[[], object], Callable[[], object], Tensor]] = [
        ("argmax_over_classes", lambda: argmax_over_classes(scores), lambda: scores.argmax(0), scores),
        ("confusion_matrix_from_scores", lambda: matrix.add(argmax_over_classes(scores), truth), all_by_numpy, scores),
        (
            "confusion_matrix_from_labels",
            lambda: matrix.add(labels, truth),
            counted_by_numpy,
            torch.stack([labels, truth]),
        ),
    ]
    records = []
    for name, run_ours, run_reference, data in pairs:
        ours, reference, copy = fastest([run_ours, run_reference, copy_of(data)], 2)
        limit = copy / 2 / ours  # a copy reads and writes
        records.append(Record(f"evaluation/{name}_ms", ours * 1e3, "ms", reference * 1e3, reference / ours, limit))
    return records


def make_evaluator(kind: str, task: str, path: str) -> DatasetEvaluator:
    name = Path(path).stem
    metadata = MetadataCatalog.get(name).set(json_file=path)
    if kind == "lvis":
        return LVISEvaluator(name, tasks=(task,), distributed=False)
    metadata.set(thing_dataset_id_to_contiguous_id={c + 1: c for c in range(80)})
    return COCOEvaluator(name, tasks=(task,), distributed=False)


def run(evaluator: DatasetEvaluator, world: World) -> dict[str, Any]:
    evaluator.reset()
    for image_id, instances in world.detections.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate() or {}


def with_category_ids(instances: Any, image_id: int) -> list[dict[str, Any]]:
    """The detections of an image as dicts, classes as ids of the annotations."""
    items = instances_to_coco_json(instances, image_id)
    for item in items:
        item["category_id"] += 1
    return items


def difference(value: float, expected: float) -> float:
    if math.isnan(value) and math.isnan(expected):
        return 0.0
    return abs(value - expected) if math.isfinite(value - expected) else math.inf


def whole_validation_set(images: int = 20_000) -> list[Record]:
    """Time and peak memory of LVIS evaluation of boxes, in a process of its own, its input drawn image by image."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        seconds, before, peak = pool.apply(_evaluate_validation_set, (images,))
    return [
        Record("evaluation/lvis_val_s", seconds, "s"),
        Record("evaluation/lvis_val_peak_gb", peak, "GB"),
        Record("evaluation/lvis_val_gb_before_evaluation", before, "GB"),
    ]


def _evaluate_validation_set(images: int) -> tuple[float, float, float]:
    """Seconds of ``evaluate``; peak gigabytes of the process before it and after it."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lvis_val.json"
        write_annotations(images, path)
        evaluator = make_evaluator("lvis", "bbox", str(path))
        evaluator.reset()
        world = validation_world(images)
        annotation_id = 1
        for image_id in range(1, images + 1):
            _, annotations, instances = world.draw_image(image_id, annotation_id)
            annotation_id += len(annotations)
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        before = peak_gigabytes()
        start = time.process_time()
        evaluator.evaluate()
        return time.process_time() - start, before, peak_gigabytes()


def validation_world(images: int) -> SyntheticWorld:
    return SyntheticWorld(images, num_classes=1203, detections_per_image=300, federated=True)


def write_annotations(images: int, path: Path) -> None:
    world = validation_world(images)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, images + 1):
        record, own, _ = world.draw_image(image_id, len(annotations) + 1)
        records.append(record)
        annotations += own
    path.write_text(json.dumps(world.assemble(records, annotations)))


def peak_gigabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    sys.exit(main())
