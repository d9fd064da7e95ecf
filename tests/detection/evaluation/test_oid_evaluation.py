"""Open Images evaluation: recorded results, hand-made cases, a slow loop, the evaluator and its errors."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import detection  # noqa: F401  makes detectron2 importable
from detection.evaluation.oid import OIDEvaluator
from detection.evaluation.open_images_ap import (
    OpenImagesDetections,
    OpenImagesGroundTruth,
    class_ancestors,
    evaluate_detections,
)
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from prompt_pretrain.errors import InputError

TREE = {"LabelName": "root", "Subcategory": [{"LabelName": "a", "Subcategory": [{"LabelName": "b"}]}]}
SQUARE = [10, 10, 20, 20]


def truth_of(annotations, *, num_classes=3, positive=(1, 2), negative=(3,), num_images=1, **changes):
    """Ground truth of images that all have the same verified labels; annotations are (image, category, box, group)."""
    rows = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": int(group)}
        for number, (image, category, box, group) in enumerate(annotations, 1)
    ]
    images = [
        {
            "id": number,
            "height": 100,
            "width": 100,
            "pos_category_ids": list(positive),
            "neg_category_ids": list(negative),
        }
        for number in range(1, num_images + 1)
    ]
    names = "abcdefgh"
    categories = [
        {"id": number, "name": names[number - 1], "freebase_id": names[number - 1]}
        for number in range(1, num_classes + 1)
    ]
    return {"images": images, "annotations": rows, "categories": categories, **changes}


def detections_of(rows, masks=None):
    """Detections (row of the image, class index, box, score)."""
    image, label, box, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    return OpenImagesDetections(
        np.array(image, dtype=np.int64),
        np.array(label, dtype=np.int64),
        np.array(box, dtype=np.float64).reshape(-1, 4),
        np.array(score, dtype=np.float64),
        masks,
    )


def evaluate(content, rows, **options):
    return evaluate_detections(OpenImagesGroundTruth(content), detections_of(rows), **options)


@pytest.mark.golden("detic_oid_eval")
def test_recorded_results(golden):
    content = golden.meta["gt"]
    truth = OpenImagesGroundTruth(content)
    found = detections_of(
        [
            (
                truth.row_of_image[item["image_id"]],
                truth.category_ids.index(item["category_id"]),
                item["bbox"],
                item["score"],
            )
            for item in golden.meta["detections"]
        ]
    )
    names = [category["freebase_id"] for category in truth.categories]
    tolerance = {key: golden.meta["tolerance"][key] for key in ("rtol", "atol")}
    cases = {"plain": None, "expand": class_ancestors(golden.meta["hierarchy"], names)}
    for case in sorted({name.split(".")[0] for name in golden.arrays}):
        result = evaluate_detections(truth, found, ancestors=cases[case])
        assert_allclose(result.ap, golden.arrays[f"{case}.per_class"], **tolerance)
        assert_allclose(result.recall, golden.arrays[f"{case}.recall"], **tolerance)
        assert_allclose(result.mean_ap, golden.arrays[f"{case}.AP50"].item(), **tolerance)


def test_detections_of_classes_that_were_not_verified_do_not_count():
    content = truth_of([(1, 1, SQUARE, False)], positive=(1,), negative=(2,))
    wrong = [(0, 1, SQUARE, 0.9), (0, 2, SQUARE, 0.9)]  # class 3 is in neither list
    result = evaluate(content, [(0, 0, SQUARE, 0.5), *wrong])
    assert result.ap.tolist() == [1.0, -1.0, -1.0]
    assert result.mean_ap == 1.0


def test_a_box_is_found_once_and_the_best_score_gets_it():
    content = truth_of([(1, 1, SQUARE, False)])
    near = [11, 10, 20, 20]
    assert evaluate(content, [(0, 0, near, 0.9), (0, 0, SQUARE, 0.8)]).ap[0] == 1.0
    assert evaluate(content, [(0, 0, [60, 60, 9, 9], 0.9), (0, 0, SQUARE, 0.8)]).ap[0] == 0.5


def test_a_detection_looks_at_its_best_box_only():
    boxes = [[0, 0, 20, 20], [4, 0, 20, 20]]
    content = truth_of([(1, 1, box, False) for box in boxes])
    # Both detections overlap the first box most; the second is wrong though the other box is still free.
    assert evaluate(content, [(0, 0, [0, 0, 20, 20], 0.9), (0, 0, [1, 0, 20, 20], 0.8)]).recall[0] == 0.5


def test_a_group_counts_once_with_the_highest_score_in_it():
    content = truth_of([(1, 1, [0, 0, 50, 50], True), (1, 1, [60, 60, 20, 20], False)])
    inside = [(0, 0, [5, 5, 4, 4], 0.7), (0, 0, [20, 20, 4, 4], 0.9), (0, 0, [45, 45, 20, 4], 0.95)]
    result = evaluate(content, [*inside, (0, 0, [60, 60, 20, 20], 0.8)])
    # By score: 0.95 lies mostly outside (wrong), 0.9 finds the group, 0.8 the box; 0.7 is ignored.
    assert result.ap[0] == pytest.approx(2 / 3)
    assert result.recall[0] == 1.0
    assert result.num_annotations[0] == 2


def test_ancestors_of_a_class():
    tree = {
        "LabelName": "root",
        "Subcategory": [
            {"LabelName": "a", "Subcategory": [{"LabelName": "x", "Subcategory": [{"LabelName": "b"}]}]},
            {"LabelName": "c", "Subcategory": [{"LabelName": "b", "Subcategory": [{"LabelName": "d"}]}]},
        ],
    }
    assert class_ancestors(tree, list("abcd")) == [[], [0, 2], [], [1, 2]]


def test_expansion_counts_for_ancestors_after_the_limit_per_image():
    content = truth_of([(1, 1, SQUARE, False), (1, 2, SQUARE, False)])
    row = [(0, 1, SQUARE, 0.9)]
    assert evaluate(content, row).ap.tolist() == [0.0, 1.0, -1.0]
    assert evaluate(content, row, ancestors=[[], [0], []]).ap.tolist() == [1.0, 1.0, -1.0]
    assert evaluate(content, row, ancestors=[[], [0], []], max_detections=1).ap.tolist() == [1.0, 1.0, -1.0]


def test_only_the_best_detections_of_an_image_count():
    content = truth_of([(1, 1, SQUARE, False), (2, 1, SQUARE, False)], num_images=2)
    rows = [(0, 1, SQUARE, 0.9), (0, 0, SQUARE, 0.8), (1, 0, SQUARE, 0.1)]
    assert evaluate(content, rows, max_detections=1).recall[0] == 0.5


def test_nothing_detected_and_nothing_annotated():
    assert evaluate(truth_of([(1, 1, SQUARE, False)]), []).ap.tolist() == [0.0, -1.0, -1.0]
    result = evaluate(truth_of([]), [(0, 0, SQUARE, 0.9)])
    assert result.mean_ap == result.instance_weighted_ap == -1.0


def test_agrees_with_a_slow_loop():
    random = np.random.RandomState(0)
    annotations = [
        (random.randint(1, 6), random.randint(1, 4), [*random.randint(0, 40, 2), *random.randint(10, 60, 2)], flag)
        for flag in random.rand(60) < 0.2
    ]
    annotations = [(image, category, list(map(float, box)), flag) for image, category, box, flag in annotations]
    content = truth_of(annotations, positive=(1, 2, 3), negative=(), num_images=5)
    scores = random.permutation(400) / 400
    rows = [
        (random.randint(5), random.randint(3), [*random.randint(0, 40, 2), *random.randint(10, 60, 2)], score)
        for score in scores
    ]
    result = evaluate(content, rows)
    for label in range(3):
        assert result.ap[label] == pytest.approx(slow_ap(annotations, rows, label), abs=1e-12)


def overlap(one, other, group):
    width = max(min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0]), 0)
    height = max(min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1]), 0)
    own, others = one[2] * one[3], other[2] * other[3]
    return width * height / (own if group else own + others - width * height)


def slow_ap(annotations, rows, label):
    outcomes, total = [], 0
    for image in range(5):
        mine = [
            (box, group) for number, category, box, group in annotations if (number - 1, category - 1) == (image, label)
        ]
        total += len(mine)
        singles, groups = [box for box, group in mine if not group], [box for box, group in mine if group]
        taken, group_scores = set(), {}
        for _, _, box, score in sorted((row for row in rows if row[:2] == (image, label)), key=lambda row: -row[3]):
            ious = [overlap(box, other, False) for other in singles]
            inside = [overlap(box, other, True) for other in groups]
            if ious and max(ious) >= 0.5 and ious.index(max(ious)) not in taken:
                taken.add(ious.index(max(ious)))
                outcomes.append((score, 1))
            elif inside and max(inside) >= 0.5:
                group_scores.setdefault(inside.index(max(inside)), score)
            else:
                outcomes.append((score, 0))
        outcomes += [(score, 1) for score in group_scores.values()]
    hits, points = 0, []
    for rank, (_, right) in enumerate(sorted(outcomes, reverse=True), 1):
        hits += right
        points.append((hits / total, hits / rank))
    ap, previous = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        ap += (recall - previous) * max(precision for _, precision in points[number:])
        previous = recall
    return ap


@pytest.fixture
def dataset(tmp_path):
    """Registers an Open Images json; returns a function from its content to the name."""
    names = []

    def register(content, tree=TREE):
        name = f"oid_made_up_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        (tmp_path / "challenge-2019-label500-hierarchy.json").write_text(json.dumps(tree))
        MetadataCatalog.get(name).set(json_file=str(path))
        names.append(name)
        return name

    yield register
    for name in names:
        MetadataCatalog.remove(name)


def instances(rows, with_masks=False):
    """Boxes as x, y, width, height; masks fill them."""
    found = Instances((100, 100))
    boxes = torch.tensor([row[1] for row in rows], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found.pred_boxes = Boxes(boxes)
    found.pred_classes = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    found.scores = torch.tensor([row[2] for row in rows], dtype=torch.float32)
    if with_masks:
        found.pred_masks = torch.zeros(len(rows), 100, 100, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found.pred_masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
    return found


def test_evaluator_reports_fractions_and_writes_its_files(dataset, tmp_path, caplog):
    name = dataset(truth_of([(1, 1, SQUARE, False), (1, 2, SQUARE, False)]))
    evaluator = OIDEvaluator(name, None, False, str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances([(1, SQUARE, 0.75)])}])
    with caplog.at_level(logging.INFO):
        assert evaluator.evaluate() == {"bbox": {"AP50": 0.5, "AP50_expand": 1.0}}
    assert "weighted by their number of instances" in caplog.text
    rows = json.loads((tmp_path / "out" / "oid_instances_results.json").read_text())
    assert rows == [{"image_id": 1, "category_id": 2, "bbox": [10.0, 10.0, 20.0, 20.0], "score": 0.75}]
    assert np.load(tmp_path / "out" / "oid_mAP.npy").tolist() == [1.0, 1.0, -1.0]


def test_evaluator_of_masks(dataset, tmp_path):
    content = truth_of([(1, 1, SQUARE, False)])
    content["annotations"][0]["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    name = dataset(content)
    evaluator = OIDEvaluator(name, distributed=False, output_dir=str(tmp_path), with_masks=True)
    evaluator.reset()
    output = instances([(0, SQUARE, 0.5), (0, [70, 70, 9, 9], 0.9)], with_masks=True)
    evaluator.process([{"image_id": 1}], [{"instances": output}])
    assert evaluator.evaluate() == {"bbox": {"AP50": 0.5, "AP50_segm": 0.5}}
    assert "segmentation" in json.loads((tmp_path / "oid_instances_results.json").read_text())[0]


def test_evaluator_without_images_or_detections(dataset):
    evaluator = OIDEvaluator(dataset(truth_of([(1, 1, SQUARE, False)])), distributed=False)
    evaluator.reset()
    assert evaluator.evaluate() == {}
    evaluator.process([{"image_id": 1}, {"image_id": 77}], [{"instances": instances([])}] * 2)
    assert evaluator.evaluate() == {"bbox": {"AP50": 0.0, "AP50_expand": 0.0}}


def test_errors(dataset, tmp_path):
    good = truth_of([(1, 1, SQUARE, False)])
    bad = {
        "has no list 'annotations'": {"annotations": None},
        "image 1 has no 'pos_category_ids'": {"images": [{"id": 1, "neg_category_ids": []}]},
        "neg_category_ids of image 1 holds 9": {"images": [{"id": 1, "pos_category_ids": [], "neg_category_ids": [9]}]},
        "annotation 1 has the unknown category 8": truth_of([(1, 8, SQUARE, False)]),
        "is of category 3, which is not in pos_category_ids of its image 1": truth_of([(1, 3, SQUARE, False)]),
    }
    for message, changes in bad.items():
        with pytest.raises(InputError, match=re.escape(message)):
            OIDEvaluator(dataset({**good, **changes}))
    name = dataset(good)
    evaluator = OIDEvaluator(name, distributed=False)
    evaluator.process([{"image_id": 1}], [{"instances": instances([(5, SQUARE, 0.5)])}])
    with pytest.raises(InputError, match="a detection has class 5, but .* has 3 categories"):
        evaluator.evaluate()
    with pytest.raises(InputError, match="no class hierarchy .*elsewhere.json, which AP50_expand needs"):
        OIDEvaluator(name, hierarchy_file=tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match="the detections have no masks"):
        OIDEvaluator(name, with_masks=True).process([{"image_id": 1}], [{"instances": instances([(0, SQUARE, 1)])}])
    evaluator = OIDEvaluator(name, distributed=False, with_masks=True)
    evaluator.process([{"image_id": 1}], [{"instances": instances([(0, SQUARE, 1)], with_masks=True)}])
    with pytest.raises(InputError, match="annotation 1 has no 'segmentation'"):
        evaluator.evaluate()
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(InputError, match="is no valid JSON"):
        OIDEvaluator(name, hierarchy_file=broken)
    MetadataCatalog.get("oid_made_up_absent").json_file = str(tmp_path / "absent.json")
    with pytest.raises(InputError, match="absent.json .*not found; DETECTRON2_DATASETS"):
        OIDEvaluator("oid_made_up_absent")
    MetadataCatalog.remove("oid_made_up_absent")
