"""Detections as objects, as COCO json and as instances."""

import json

import numpy as np
import pytest
import torch

import detection  # noqa: F401  makes a detectron2 importable
from detection.results import DetectionResult, coco_file
from detectron2.structures import Boxes, Instances
from prompt_pretrain.errors import InputError

NAMES = ("red car", "dog", "traffic cone")


def result(*, masks: bool = True, index: int = 0, names: tuple[str, ...] = NAMES) -> DetectionResult:
    instances = Instances((20, 30))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 11.0, 7.0], [0.0, 0.0, 5.0, 5.0], [3.0, 3.0, 9.0, 9.5]]))
    instances.scores = torch.tensor([0.9, 0.6, 0.2])
    instances.pred_classes = torch.tensor([2, 0, 2])
    if masks:
        instances.pred_masks = torch.zeros(3, 20, 30, dtype=torch.bool)
        instances.pred_masks[0, 2:7, 1:11] = True
    return DetectionResult(instances, names, f"image{index}.jpg", index)


def test_detections_carry_names_boxes_and_masks() -> None:
    found = list(result())
    assert [each.class_name for each in found] == ["traffic cone", "red car", "traffic cone"] == result().class_names
    assert found[0].box == (1.0, 2.0, 11.0, 7.0) and found[0].class_id == 2
    assert found[0].score == pytest.approx(0.9)
    assert found[0].mask is not None and found[0].mask.sum() == 50
    assert (result().height, result().width) == (20, 30)
    assert next(iter(result(masks=False))).mask is None
    assert "traffic cone 0.90" in repr(result())


def test_selection_by_score_and_by_name() -> None:
    assert len(result().above(0.5)) == 2
    assert result().of("traffic cone").scores.tolist() == pytest.approx([0.9, 0.2])
    assert len(result().of("dog")) == 0
    with pytest.raises(InputError, match="'cat' is not among the 3 classes"):
        result().of("cat")


def test_to_coco_has_ids_names_and_run_lengths() -> None:
    entries = result().to_coco(image_id=7)
    assert json.loads(json.dumps(entries)) == entries
    assert entries[0]["bbox"] == [1.0, 2.0, 10.0, 5.0]
    assert [(each["image_id"], each["category_id"]) for each in entries] == [(7, 3), (7, 1), (7, 3)]
    assert entries[1]["category_name"] == "red car"
    assert entries[0]["segmentation"]["size"] == [20, 30]
    assert "segmentation" not in result(masks=False).to_coco()[0]
    assert [each["category_id"] for each in result().to_coco(category_ids=[10, 20, 90])] == [90, 10, 90]


def test_coco_file_is_a_whole_data_set() -> None:
    from pycocotools.coco import COCO

    content = coco_file([result(index=0), result(index=1)])
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    assert [coco.cats[number]["name"] for number in (1, 2, 3)] == list(NAMES)
    assert len(coco.getAnnIds(imgIds=[1])) == 3
    assert coco_file([]) == {"images": [], "annotations": [], "categories": []}
    with pytest.raises(InputError, match="different vocabularies"):
        coco_file([result(), result(names=("a", "b", "c"))])


def test_drawing_changes_only_a_copy() -> None:
    image = np.full((20, 30, 3), 128, np.uint8)
    drawn = result().draw(image, min_score=0.5)
    assert drawn.shape == image.shape and (drawn != image).any() and (image == 128).all()
