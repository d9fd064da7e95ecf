"""COCO and LVIS evaluation against recorded results, and against the reference implementations."""

import json
import re

import numpy as np
import pytest
import torch

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.structures import Boxes, Instances
from tests.third_party.detectron2.evaluation_data import ellipse_masks, register, same_metrics


def _instances(golden, prediction, masks):
    """The recorded predictions for one image as a model gives them."""
    size = tuple(golden.meta["image_size"])
    boxes = np.array(prediction["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.scores = torch.tensor(prediction["scores"], dtype=torch.float32)
    instances.pred_classes = torch.tensor(prediction["classes"], dtype=torch.int64)
    if masks:
        instances.pred_masks = ellipse_masks(boxes, prediction["image_id"], size)
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
        if case == "tasks_bbox":
            options["tasks"] = ("bbox",)
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
        options = {"output_dir": str(tmp_path / case)}
        if case.startswith("max_dets_"):
            options["max_dets_per_image"] = int(case.rsplit("_", 1)[1])
        else:
            assert case in ("default", "boxes_only"), f"{golden.path}: unknown case {case}"
        results = _run(LVISEvaluator(name, **options), golden, masks=case != "boxes_only")
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


def test_metadata_stays_as_registered(tmp_path):
    name = register({"images": [], "annotations": [], "categories": []}, tmp_path, thing_classes=[])
    COCOEvaluator(name, output_dir=str(tmp_path))
    assert MetadataCatalog.get(name).json_file == str(tmp_path / f"{name}.json")
