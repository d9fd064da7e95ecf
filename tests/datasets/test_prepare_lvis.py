"""Preparation of LVIS on a file of four images."""

import pytest

from tests.datasets.preparation_tools import Command

POLYGON = [[1, 1, 9, 1, 9, 9]]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command("prepare_lvis", tmp_path, monkeypatch, capsys)


def image(number, folder="train2017", negative=(), size=(48, 64)):
    url = f"http://images.cocodataset.org/{folder}/{number:012d}.jpg"
    row = {"id": number, "coco_url": url, "height": size[0], "width": size[1]}
    return {**row, "neg_category_ids": list(negative), "not_exhaustive_category_ids": []}


def annotation(number, image_id, category, box):
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": box, "segmentation": POLYGON}


@pytest.fixture
def lvis():
    return {
        "images": [image(3), image(1, negative=[2, 13]), image(2), image(4, "val2017", [5])],
        "annotations": [
            annotation(11, 1, 3, [4, 5, 20, 10]),
            annotation(12, 1, 13, [30, 8, 10.5, 30.25]),
            annotation(13, 2, 1203, [0, 0, 48, 64]),
            annotation(14, 4, 5, [1, 1, 2, 2]),
        ],
        "categories": [
            {"id": number, "name": f"c{number}", "frequency": "r" if number == 13 else "f"} for number in range(1, 1204)
        ],
    }


def test_norare_drops_annotations_only(command, lvis):
    command.write("lvis/lvis_v1_train.json", lvis)
    out = command("norare")
    assert "dropped 1 of 4 annotations" in out
    assert "4 images, 3 annotations, 1,203 categories" in out
    result = command.read("lvis/lvis_v1_train_norare.json")
    assert [row["id"] for row in result["annotations"]] == [11, 13, 14]
    assert result["images"] == lvis["images"]
    assert result["categories"] == lvis["categories"]
    assert command.read("lvis/lvis_v1_train.json") == lvis
    assert command("norare") == out  # again, from the same input


def test_minival_keeps_the_images_of_val2017(command, lvis):
    command.write("lvis/lvis_v1_val.json", lvis)
    command("minival")
    result = command.read("lvis/lvis_v1_minival_inserted_image_name.json")
    assert [(row["id"], row["file_name"]) for row in result["images"]] == [(4, "val2017/000000000004.jpg")]
    assert [row["id"] for row in result["annotations"]] == [14]


def test_category_info_counts_images_and_instances(command, lvis):
    lvis["annotations"] += [annotation(15, 1, 3, [0, 0, 1, 1]), annotation(16, 2, 3, [0, 0, 1, 1])]
    source = command.write("some.json", {**lvis, "categories": lvis["categories"][::-1]})
    assert command.module.main(["cat-info", str(source), "--add-freq", "--r-thresh", "2", "--c-thresh", "3"]) == 0
    rows = command.read("some_cat_info.json")
    assert [row["id"] for row in rows] == list(range(1, 1204))
    assert {key: rows[2][key] for key in ("image_count", "instance_count", "frequency")} == {
        "image_count": 2,
        "instance_count": 3,
        "frequency": "c",
    }
    assert rows[0]["frequency"] == "r"
    assert command.module.frequency(9, 10, 100) == "r"
    assert [command.module.frequency(count, 10, 100) for count in (10, 99, 100)] == ["c", "c", "f"]


def test_shipped_counts_are_those_of_lvis(command):
    import json

    from prompt_pretrain.metadata import metadata_file, read_columns

    rows = json.loads(metadata_file("lvis_v1_train_cat_info.json").read_text())
    table = read_columns("lvis_v1_categories.json")
    for key in ("id", "image_count", "frequency"):
        assert tuple(row[key] for row in rows) == table[key]


def test_merge_takes_what_lvis_lacks(command, lvis):
    # COCO's classes: airplane (5) is LVIS 3, person (1) is 793, banana (52) is 45
    def of_coco(number, image_id, category, box):
        return {**annotation(number, image_id, category, box), "iscrowd": 0, "area": 4.0}

    lvis["images"][1]["neg_category_ids"].append(45)
    coco = {
        "images": [{"id": 100 + number, "file_name": f"{number:012d}.jpg"} for number in (1, 2, 3)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            of_coco(1, 101, 5, [4, 5, 20, 9]),  # the airplane of LVIS, nearly
            of_coco(2, 101, 5, [4, 5, 20, 6]),  # IoU 0.6: another one
            of_coco(3, 101, 1, [4, 5, 20, 10]),
            of_coco(4, 101, 52, [0, 0, 5, 5]),  # LVIS says that there is none
            of_coco(5, 103, 1, [0, 0, 5, 5]),  # LVIS annotates nothing in this image
        ],
    }
    command.write("lvis/lvis_v1_train.json", lvis)
    command.write("coco/annotations/instances_train2017.json", coco)
    assert "took 2 annotations" in command("merge-coco")
    rows = command.read("lvis/lvis_v1_train+coco_mask.json")["annotations"]
    assert [row["id"] for row in rows] == list(range(1, 7))
    found = [(row["image_id"], row["category_id"], row["bbox"]) for row in rows]
    assert found[:4] == [
        (1, 3, [4, 5, 20, 10]),
        (1, 13, [30, 8, 10.5, 30.25]),
        (1, 3, [4, 5, 20, 6]),
        (1, 793, [4, 5, 20, 10]),
    ]


def test_box_iou(command):
    assert command.module.box_iou([0, 0, 10, 10], [5, 0, 10, 10]) == pytest.approx(1 / 3)
    assert command.module.box_iou([0, 0, 10, 10], [20, 0, 10, 10]) == 0
    assert command.module.box_iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0


def test_errors(command, lvis):
    path = command.root / "lvis/lvis_v1_train.json"
    assert f"{path} not found; download it first" in command.error("norare")
    source = command.write("lvis/lvis_v1_train.json", {**lvis, "categories": [{"id": 1, "name": "a"}]})
    assert "category 1 has no 'frequency' r, c or f" in command.error("norare")
    command.write("lvis/lvis_v1_train.json", lvis)
    assert "would overwrite its input" in command.error("norare", "--output", source)
    source.write_text("[]")
    assert "has no list 'images'" in command.error("norare")
    source.write_text("{")
    assert "is no valid JSON" in command.error("norare")
    command.write("lvis/lvis_v1_train.json", {**lvis, "images": [{"height": 3}]})
    assert "image number 0 has no 'id'" in command.error("norare")
    command.write("lvis/lvis_v1_val.json", {**lvis, "images": [{"id": 8}]})
    assert "image 8 has no 'coco_url'" in command.error("minival")
    command.write("lvis/lvis_v1_train.json", {**lvis, "images": [{"id": 1}]})
    command.write("coco/annotations/instances_train2017.json", lvis)
    assert "image 1 has neither 'coco_url' nor 'file_name'" in command.error("merge-coco")
    info = command.write("odd.json", {**lvis, "categories": lvis["categories"][:4]})
    with pytest.raises(ValueError, match="annotation 12 is of category 13, which the file does not list"):
        command.module.main(["cat-info", str(info)])
    with pytest.raises(ValueError, match="--r-thresh 5 and --c-thresh 2"):
        command.module.main(["cat-info", str(info), "--r-thresh", "5", "--c-thresh", "2"])
