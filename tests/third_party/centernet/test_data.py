"""Registered data sets and class-aware sampling."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from centernet.data import ClassAwareSampler
from centernet.data.datasets import register_all
from detectron2.data import DatasetCatalog, MetadataCatalog

NAMES = (
    "objects365_train objects365_val nuimages_train nuimages_val nuimages_mini coco_2017_unlabeled "
    "coco_un_yolov4_55_0.5"
).split()


def image(*classes: int) -> dict[str, Any]:
    return {"annotations": [{"category_id": label} for label in classes]}


def test_all_data_sets_are_registered_once() -> None:
    register_all("elsewhere")
    for name in NAMES:
        assert name in DatasetCatalog
        assert MetadataCatalog.get(name).evaluator_type == "coco"
        assert not MetadataCatalog.get(name).json_file.startswith("elsewhere")


def test_pseudo_labels_keep_their_scores(tmp_path: Path) -> None:
    name = "coco_un_yolov4_55_0.5"
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 2, 2], "iscrowd": 0, "area": 4, "score": 0.75}
        ],
    }
    file = tmp_path / Path("coco/annotations") / Path(MetadataCatalog.get(name).json_file).name
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    metadata = MetadataCatalog.get(name).as_dict()
    registered = DatasetCatalog.pop(name)
    MetadataCatalog.remove(name)
    try:
        register_all(str(tmp_path))
        (entry,) = DatasetCatalog.get(name)
        assert entry["annotations"][0]["score"] == 0.75
        assert entry["annotations"][0]["category_id"] == 0
        assert MetadataCatalog.get(name).thing_classes == ["thing"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        DatasetCatalog.register(name, registered)
        metadata.pop("name")
        MetadataCatalog.get(name).set(**metadata)


def test_an_image_weighs_what_its_classes_are_short_of() -> None:
    sampler = ClassAwareSampler([image(0), image(0, 0, 1), image(0), image()], seed=0)
    assert torch.equal(sampler.weights, torch.tensor([1 / 3, 1 / 3 + 1, 1 / 3, 0.0]))


def test_draws_follow_the_weights_and_repeat_with_the_seed() -> None:
    images = [image(0)] * 8 + [image(1)] * 2
    draws = list(itertools.islice(ClassAwareSampler(images, seed=3), 4000))
    assert draws == list(itertools.islice(ClassAwareSampler(images, seed=3), 4000))
    rare = sum(count for index, count in Counter(draws).items() if index >= 8)
    assert abs(rare / 4000 - 0.5) < 0.04


def test_images_without_annotations_are_an_error() -> None:
    with pytest.raises(ValueError, match="none of 2 images has one; set DATALOADER.SAMPLER_TRAIN"):
        ClassAwareSampler([image(), image()], seed=0)
