"""COCO and LVIS evaluation against recorded results, and against the reference implementations."""

import json
import re

import numpy as np
import pytest
import torch
from lvis import LVIS

from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from tests.third_party.detectron2.evaluation_data import ellipse_masks, register, same_metrics
from third_party import detectron2_source
from tools.benchmarks._synthetic_detections import (
    SyntheticWorld,
    World,
    lvis_metrics,
    pycocotools_metrics,
    read_coco,
)


@pytest.fixture(autouse=True)
def numpy_float(monkeypatch):
    """lvis, on which the real detectron2's evaluator runs, needs an alias that NumPy has removed."""
    if detectron2_source() == "installed":
        monkeypatch.setattr(np, "float", float, raising=False)


def _instances(golden, prediction, masks):
    """The recorded predictions for one image as a model gives them."""
    size = tuple(golden.meta["image_size"])
    boxes = np.array(prediction["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.scores = torch.tensor(prediction["scores"], dtype=torch.float32)
    instances.pred_classes = torch.tensor(prediction["classes"], dtype=torch.int64)
    if masks:
        recipe = r"RandomState\((\d+)\+(\d+)\*i\+j\)"
        seeds = re.search(recipe, golden.meta["pred_masks"])
        # "same recipe as d2_coco_eval"
        seeds = seeds or re.search(recipe, golden.sibling("d2_coco_eval").meta["pred_masks"])
        first_seed = int(seeds[1]) + int(seeds[2]) * prediction["image_id"]
        instances.pred_masks = ellipse_masks(boxes, first_seed, size)
    return instances


def _run(evaluator, golden, *, masks=True, keep=lambda instances: instances, field="instances", **kwargs):
    evaluator.reset()
    for prediction in golden.meta["predictions"]:
        output = {field: keep(_instances(golden, prediction, masks))}
        evaluator.process([{"image_id": prediction["image_id"]}], [output])
    return evaluator.evaluate(**kwargs)


def _as_proposals(instances):
    return Instances(instances.image_size, proposal_boxes=instances.pred_boxes, objectness_logits=instances.scores)


def _tolerance(golden):
    return float(re.match(r"\S+", golden.meta["tolerance"]).group())


@pytest.mark.golden("d2_coco_eval")
def test_coco_results_match_the_recording(golden, tmp_path):
    meta = golden.meta
    ids = sorted(category["id"] for category in meta["gt"]["categories"])
    names = {category["id"]: category["name"] for category in meta["gt"]["categories"]}
    name = register(
        meta["gt"],
        tmp_path,
        thing_classes=[names[i] for i in ids],
        thing_dataset_id_to_contiguous_id={category_id: index for index, category_id in enumerate(ids)},
    )
    for case, expected in meta["results"].items():
        folder = tmp_path / case
        options, run = {"output_dir": str(folder)}, {}
        if case.startswith("tasks_"):
            options["tasks"] = tuple(case.split("_")[1:])
        elif case == "official_impl":
            options["use_fast_impl"] = False
        elif case.startswith("max_dets_"):
            options["max_dets_per_image"] = int(case.rsplit("_", 1)[1])
        elif case == "boxes_only":
            run["masks"] = False
        elif case.startswith("img_ids_first_"):
            run["masks"] = "segm" in expected
            run["img_ids"] = [image["id"] for image in meta["gt"]["images"]][: int(case.rsplit("_", 1)[1])]
        elif case == "no_detections":
            run.update(masks=False, keep=lambda instances: instances[:0])
        elif case == "box_proposals":
            run.update(field="proposals", keep=_as_proposals, masks=False)
        else:
            assert case == "default", f"{golden.path}: unknown case {case}"
        same_metrics(_run(COCOEvaluator(name, **options), golden, **run), expected, _tolerance(golden))
    evaluator = COCOEvaluator(name)
    evaluator.reset()
    assert evaluator.evaluate() == meta["results_when_no_process_call"]
    written = json.loads((tmp_path / "default" / "coco_instances_results.json").read_text())
    assert len(written) == meta["results_json_count"]
    first = meta["results_json_first_entries"]
    assert written[: len(first)] == first
    _check_saved_predictions(tmp_path / "default", golden, ids)


@pytest.mark.golden("d2_lvis_eval")
def test_lvis_results_match_the_recording(golden, tmp_path):
    meta = golden.meta
    name = register(meta["gt"], tmp_path)
    for case, expected in meta["results"].items():
        options, run = {"output_dir": str(tmp_path / case)}, {}
        if case.startswith("max_dets_"):
            options["max_dets_per_image"] = int(case.rsplit("_", 1)[1])
        elif case == "no_detections":
            run.update(masks=False, keep=lambda instances: instances[:0])
        else:
            assert case in ("default", "boxes_only"), f"{golden.path}: unknown case {case}"
            run["masks"] = case == "default"
        results = _run(LVISEvaluator(name, **options), golden, **run)
        same_metrics(results, expected, _tolerance(golden))
    written = json.loads((tmp_path / "default" / "lvis_instances_results.json").read_text())
    assert len(written) == meta["results_json_count"]
    first = meta["results_json_first_entries"]
    assert written[: len(first)] == first


def _check_saved_predictions(folder, golden, category_ids):
    saved = torch.load(folder / "instances_predictions.pth", weights_only=True)
    assert [item["image_id"] for item in saved] == [item["image_id"] for item in golden.meta["predictions"]]
    written = iter(json.loads((folder / "coco_instances_results.json").read_text()))
    for item in saved:
        for detection in item["instances"]:
            # The same, but with the model's class indices.
            assert {**detection, "category_id": category_ids[detection["category_id"]]} == next(written)
    assert next(written, None) is None


def _evaluate(evaluator, world):
    evaluator.reset()
    for image_id, instances in world.detections.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def _results_of(world):
    """Detections as dicts with the category ids of the annotations."""
    for image_id, instances in world.detections.items():
        for item in instances_to_coco_json(instances, image_id):
            yield {**item, "category_id": item["category_id"] + 1}


def _coco(world, folder, **options):
    count = len(world.annotations["categories"])
    name = register(
        world.annotations, folder, thing_dataset_id_to_contiguous_id={index + 1: index for index in range(count)}
    )
    return COCOEvaluator(name, distributed=False, **options)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_coco_numbers_are_those_of_pycocotools(task, seed, tmp_path):
    world = SyntheticWorld(40, 12, 30, federated=False, masks=True, size=(120, 160), seed=seed).draw()
    results = _evaluate(_coco(world, tmp_path), world)[task]
    api = read_coco(str(next(tmp_path.glob("*.json"))))
    expected = pycocotools_metrics(api, list(_results_of(world)), task)
    assert any(item["iscrowd"] for item in world.annotations["annotations"])
    same_metrics({name: results[name] for name in expected}, expected, 1e-9)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_lvis_numbers_are_those_of_lvis(task, seed, tmp_path):
    world = SyntheticWorld(40, 60, 60, federated=True, masks=True, size=(120, 160), seed=seed).draw()
    name = register(world.annotations, tmp_path)
    for limit in (300, 25):
        evaluator = LVISEvaluator(name, distributed=False, max_dets_per_image=limit)
        api = LVIS(str(tmp_path / f"{name}.json"))
        expected = lvis_metrics(api, list(_results_of(world)), task, max_dets=limit)
        same_metrics(_evaluate(evaluator, world)[task], expected, 1e-9)


def test_images_without_annotations_or_detections_count(tmp_path):
    """False positives on an empty image lower AP; an image where nothing is found lowers recall."""
    box = torch.tensor([[10.0, 10, 50, 50]])
    found = Instances((60, 60), pred_boxes=Boxes(box), scores=torch.tensor([0.9]), pred_classes=torch.tensor([0]))
    images = [{"id": i, "height": 60, "width": 60, "file_name": f"{i}.jpg"} for i in (1, 2, 3)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0} for i in (1, 2)
    ]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}

    def average_precision(detections):
        return _evaluate(_coco(World(content, {}), tmp_path), World(content, detections))["bbox"]["AP"]

    assert average_precision({1: found, 2: found, 3: found[:0]}) == pytest.approx(100)
    surer = Instances((60, 60), **found.get_fields())
    surer.scores = torch.tensor([0.95])
    # Wrong, right, right by rank: two of three at every level of recall.
    assert average_precision({1: found, 2: found, 3: surer}) == pytest.approx(100 * 2 / 3)
    half = average_precision({1: found, 2: found[:0], 3: found[:0]})
    assert half == pytest.approx(100 * 51 / 101)


def test_detections_beyond_the_limit_per_class_do_not_count(tmp_path):
    world = SyntheticWorld(10, 3, 150, federated=False, size=(120, 160)).draw()
    unlimited = _evaluate(_coco(world, tmp_path, max_dets_per_image=1000), world)["bbox"]["AP"]
    limited = _evaluate(_coco(world, tmp_path, max_dets_per_image=20), world)["bbox"]["AP"]
    assert limited < unlimited


def test_test_sets_without_annotations_are_written_not_evaluated(tmp_path):
    world = SyntheticWorld(3, 4, 5, federated=False, size=(120, 160)).draw()
    del world.annotations["annotations"]
    assert _evaluate(_coco(world, tmp_path, output_dir=str(tmp_path / "out")), world) == {}
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 15


def test_reset_forgets_the_round_before(tmp_path):
    world = SyntheticWorld(5, 4, 10, federated=False, size=(120, 160)).draw()
    evaluator = _coco(world, tmp_path)
    first = _evaluate(evaluator, world)["bbox"]
    assert _evaluate(evaluator, world)["bbox"] == pytest.approx(first, nan_ok=True)


def test_a_class_beyond_the_data_set_is_an_error(tmp_path):
    world = SyntheticWorld(2, 3, 4, federated=False, size=(120, 160)).draw()
    world.detections[1].pred_classes[:] = 3
    with pytest.raises((ValueError, AssertionError), match="3"):
        _evaluate(_coco(world, tmp_path), world)
