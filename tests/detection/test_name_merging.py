"""Detections of classes with several names, and of background words."""

import torch

import detection  # noqa: F401  makes a detectron2 importable
from detection.name_merging import merge_names
from detectron2.structures import Boxes, Instances
from prompt_pretrain.class_groups import ClassGroups
from prompt_pretrain.vocabulary import load_vocabulary

HERE, BESIDE, FAR = [10.0, 10, 30, 30], [11.0, 10, 31, 30], [60.0, 60, 90, 90]


def found(*rows: tuple[list[float], int, float]) -> Instances:
    boxes, classes, scores = zip(*rows, strict=True)
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes))
    instances.pred_classes = torch.tensor(classes)
    instances.scores = torch.tensor(scores)
    return instances


def kept(instances: Instances) -> list[tuple[int, float]]:
    scores = [round(score, 4) for score in instances.scores.tolist()]
    return list(zip(instances.pred_classes.tolist(), scores, strict=True))


def test_of_several_names_of_an_object_the_best_stays():
    groups = ClassGroups.of(load_vocabulary("car|automobile,dog"))  # names: car, dog, automobile
    assert kept(merge_names(found((HERE, 0, 0.5), (BESIDE, 2, 0.7), (FAR, 2, 0.4), (HERE, 1, 0.6)), groups, 0.5)) == [
        (0, 0.7),
        (1, 0.6),  # another class at the same place
        (0, 0.4),  # another object
    ]


def test_background_takes_worse_boxes_with_it_and_is_not_reported():
    groups = ClassGroups.of(["car", "dog"], background=("wall", "floor"))
    rows = found((HERE, 0, 0.5), (BESIDE, 2, 0.6), (FAR, 1, 0.6), (FAR, 3, 0.3))
    assert kept(merge_names(rows, groups, 0.5)) == [(1, 0.6)]
    assert kept(merge_names(found((HERE, 2, 0.9)), groups, 0.5)) == []


def test_no_detections_stay_none():
    groups = ClassGroups.of(["car", "dog"], background=("wall",))
    assert len(merge_names(found((HERE, 0, 0.5))[torch.tensor([False])], groups, 0.5)) == 0
