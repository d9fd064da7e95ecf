"""The splits of COCO on a handful of annotations."""

import pytest

from prompt_pretrain.vocabulary import load_vocabulary
from tests.datasets.preparation_tools import Command

PERSON, AIRPLANE, STOP_SIGN, CAT = 1, 5, 13, 17  # base, novel, unused, novel


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command("prepare_coco_zeroshot", tmp_path, monkeypatch, capsys)


@pytest.fixture
def official():
    coco = load_vocabulary("coco")
    rows = [
        (1, PERSON, 1),
        (1, STOP_SIGN, 0),
        (2, AIRPLANE, 0),
        (3, STOP_SIGN, 0),
        (4, PERSON, 0),
        (4, CAT, 0),
    ]
    return {
        "images": [{"id": number, "file_name": f"{number}.jpg", "height": 9, "width": 9} for number in (4, 1, 2, 3)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [0, 0, 5, 5], "iscrowd": crowd}
            for number, (image, category, crowd) in enumerate(rows, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in zip(coco.ids, coco.class_names, strict=True)],
    }


def test_split(command, official):
    for part in ("train", "val"):
        command.write(f"coco/annotations/instances_{part}2017.json", official)
    command("split")
    expected = {  # annotations, images, number of categories
        "train2017_seen_2": ([1, 5], [4, 1], 48),
        "train2017_seen_2_oriorder": ([1, 5], [4, 1], 80),
        "val2017_seen_2": ([1, 5], [4, 1], 48),
        "val2017_unseen_2": ([3, 6], [4, 2], 17),
        "val2017_all_2": ([1, 3, 5, 6], [4, 1, 2], 65),
        "val2017_all_2_oriorder": ([1, 3, 5, 6], [4, 1, 2], 80),
    }
    for name, (annotations, images, num_categories) in expected.items():
        content = command.read(f"coco/zero-shot/instances_{name}.json")
        assert [row["id"] for row in content["annotations"]] == annotations
        assert [row["id"] for row in content["images"]] == images
        assert len(content["categories"]) == num_categories
    rows = command.read("coco/zero-shot/instances_train2017_seen_2_oriorder_cat_info.json")
    assert {row["id"]: row["image_count"] for row in rows if row["image_count"]} == {PERSON: 2}
    assert len(rows) == 80


def test_oriorder_of_a_downloaded_file(command, official):
    command.write("coco/annotations/instances_val2017.json", {"categories": official["categories"]})
    few = {**official, "categories": official["categories"][:20]}
    command("oriorder", command.write("coco/zero-shot/seen.json", few))
    assert command.read("coco/zero-shot/seen_oriorder.json") == official


def test_errors(command, official):
    assert "instances_train2017.json not found" in command.error("split")
    few = {**official, "categories": official["categories"][1:]}
    command.write("coco/annotations/instances_val2017.json", few)
    assert "category 1 of COCO is missing" in command.error("split", "--parts", "val")
    source = command.write("coco/zero-shot/seen.json", official)
    assert "category 1 is annotated, but not among the 79 official ones" in command.error("oriorder", source)
