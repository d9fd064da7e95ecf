"""AP50 over seen and unseen classes of COCO-style data."""

import json
import math

import pytest
import torch

import detection  # noqa: F401  makes detectron2 importable
from detection.evaluation.coco_zeroshot import CustomCOCOEvaluator, seen_and_unseen_names
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

NAMES = ["cat", "dog", "bird", "horse"]


@pytest.fixture
def dataset(tmp_path):
    """Two images with a cat each, one with a dog and a bird; no horse. Cats and dogs are seen, birds unseen."""
    rows = [(1, 1), (2, 1), (1, 2), (1, 3)]
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "height": 100, "width": 100} for number in (1, 2)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": [20 * category, 10, 15, 40],
                "area": 600,
                "iscrowd": 0,
            }
            for number, (image, category) in enumerate(rows, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    name = "coco_zeroshot_made_up"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=NAMES,
        thing_dataset_id_to_contiguous_id={number: number - 1 for number in range(1, 5)},
        seen_classes=["cat", "dog"],
        unseen_classes=["bird"],
    )
    yield name
    MetadataCatalog.remove(name)


def evaluate(name, detections):
    """Detections are (image, class index, box as x, y, width, height, score)."""
    evaluator = CustomCOCOEvaluator(name, ("bbox",), False)
    evaluator.reset()
    for image in (1, 2):
        rows = [row for row in detections if row[0] == image]
        found = Instances((100, 100))
        boxes = torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes)
        found.pred_classes = torch.tensor([row[1] for row in rows], dtype=torch.int64)
        found.scores = torch.tensor([row[3] for row in rows], dtype=torch.float32)
        evaluator.process([{"image_id": image}], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_groups_are_averaged(dataset):
    found = [
        (1, 0, [20, 10, 15, 40], 0.9),
        (2, 0, [20, 10, 15, 40], 0.8),
        (1, 1, [40, 10, 15, 24], 0.9),  # IoU 0.6
        (1, 2, [0, 60, 15, 24], 0.9),  # wrong, and better than
        (1, 2, [60, 10, 15, 40], 0.5),
    ]
    results = evaluate(dataset, found)
    assert results["AP50-seen"] == pytest.approx(100)
    assert results["AP50-unseen"] == pytest.approx(50)
    assert results["AP-cat"] == pytest.approx(100)
    assert results["AP-dog"] == pytest.approx(30)  # IoU thresholds 0.5, 0.55 and 0.6 of ten
    assert results["AP50"] == pytest.approx((100 + 100 + 50) / 3)


def test_a_class_without_ground_truth_makes_the_mean_nan(dataset):
    metadata = MetadataCatalog.get(dataset)
    metadata.__dict__["unseen_classes"] = ["bird", "horse"]
    results = evaluate(dataset, [(1, 2, [60, 10, 15, 40], 0.5)])
    assert results["AP50-seen"] == 0
    assert math.isnan(results["AP50-unseen"])


def test_nothing_detected(dataset):
    results = evaluate(dataset, [])
    assert math.isnan(results["AP50-seen"])
    assert math.isnan(results["AP"])


def test_groups_of_coco():
    seen, unseen = seen_and_unseen_names("coco_generalized_zeroshot_val")
    assert (len(seen), len(unseen)) == (48, 17)
    assert "airplane" in unseen
    assert "person" in seen
