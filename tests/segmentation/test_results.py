"""Label maps as objects, as COCO json and as files."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

import segmentation  # noqa: F401  makes a detectron2 importable
from prompt_pretrain.errors import InputError
from segmentation.results import SegmentationResult

NAMES = ("sky", "red car", "road")


def result(names: tuple[str, ...] = NAMES) -> SegmentationResult:
    label_map = torch.full((4, 6), 2)
    label_map[:1] = 0
    return SegmentationResult(label_map, names, "street.jpg", 5)


def test_classes_come_with_names_areas_and_masks_largest_first() -> None:
    found = result()
    assert (found.height, found.width, len(found)) == (4, 6, 2)
    assert found.class_names == ["road", "sky"] and found.class_ids == [2, 0]
    assert found.areas == {"road": 18, "sky": 6}
    road, sky = found
    assert (road.class_name, road.class_id, road.area, road.share) == ("road", 2, 18, 0.75)
    np.testing.assert_array_equal(sky.mask, found.label_map.numpy() == 0)
    np.testing.assert_array_equal(found.mask("sky"), sky.mask)
    assert "road 75%, sky 25%" in repr(found)


def test_a_class_that_was_not_found_has_an_empty_mask() -> None:
    assert not result().mask("red car").any()
    with pytest.raises(InputError, match="'dog' is not among the 3 classes"):
        result().mask("dog")


def test_to_coco_has_ids_names_and_run_lengths() -> None:
    entries = result().to_coco()
    assert json.loads(json.dumps(entries)) == entries
    assert [(each["image_id"], each["category_id"], each["category_name"]) for each in entries] == [
        (5, 3, "road"),
        (5, 1, "sky"),
    ]
    np.testing.assert_array_equal(mask_util.decode(entries[1]["segmentation"]), result().mask("sky"))
    assert result().to_coco("a")[0]["image_id"] == "a"


def test_label_maps_survive_as_png(tmp_path: Path) -> None:
    for names in (NAMES, (*NAMES, *map(str, range(300)))):
        result(names).save_label_map(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), result().label_map.numpy())
    with pytest.raises(InputError, match="written as .png"):
        result().save_label_map(tmp_path / "a.jpg")


def test_drawing_changes_the_picture_and_not_its_size() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    drawn = result().draw(picture)
    assert drawn.shape == picture.shape and drawn.any() and not picture.any()
