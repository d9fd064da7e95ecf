"""Corrections of Objects365 with its 365 original names."""

import pytest

from prompt_pretrain.metadata import read_columns
from tests.datasets.preparation_tools import Command

TRAIN = "objects365/annotations/zhiyuan_objv2_train"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command("prepare_objects365", tmp_path, monkeypatch, capsys)


@pytest.fixture
def official():
    table = read_columns("objects365_v2_classes.json")
    names = [f"images/v1/patch0/objects365_v1_{number:08d}.jpg" for number in (1, 2)]
    return {
        "images": [{"id": number, "file_name": name, "height": 5, "width": 5} for number, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 38, "bbox": [0, 0, 2, 2]}],
        "categories": [
            {"id": number, "name": name} for number, name in zip(table["id"], table["original_name"], strict=True)
        ],
    }


def test_names_are_corrected(command, official):
    command.write("objects365/annotations/zhiyuan_objv2_val.json", official)
    command("fix-names")
    result = command.read("objects365/annotations/zhiyuan_objv2_val_fixname.json")
    names = {row["id"]: row["name"] for row in result["categories"]}
    assert (names[38], names[53], names[365]) == ("Monitor/TV", "Basket", "Table Tennis ")
    assert tuple(names.values()) == read_columns("objects365_v2_classes.json")["name"]
    assert result["annotations"] == official["annotations"]


def test_names_are_corrected_from_a_csv(command, official):
    command.write(f"{TRAIN}.json", {**official, "categories": official["categories"][36:38]})
    table = command.root / "fix.csv"
    table.write_text(
        "id,old,new\n37,Vase,Vase\n38,Moniter/TV,Screen\n".replace("Vase", official["categories"][36]["name"])
    )
    command("fix-names", "--part", "train", "--csv", table)
    assert command.read(f"{TRAIN}_fixname.json")["categories"][1] == {"id": 38, "name": "Screen"}


def test_images_without_a_file_are_dropped_and_annotations_stay(command, official):
    command.write(f"{TRAIN}_fixname.json", official)
    file = command.root / "objects365/train" / official["images"][0]["file_name"]
    file.parent.mkdir(parents=True)
    file.touch()
    assert "1 of 2 images are missing" in command("filter-missing")
    result = command.read(f"{TRAIN}_fixname_fixmiss.json")
    assert result["images"] == official["images"][:1]
    assert result["annotations"] == official["annotations"]


def test_errors(command, official):
    source = "objects365/annotations/zhiyuan_objv2_val.json"
    official["categories"][4]["name"] = "Cap"
    command.write(source, official)
    assert "category 5 is named 'Cap', expected 'Hat'" in command.error("fix-names")
    official["categories"][4]["name"] = "Hat"
    official["categories"][37]["name"] = "Monitor/TV"
    command.write(source, official)
    assert "category 38 is named 'Monitor/TV', expected 'Moniter/TV'; the names are corrected" in command.error(
        "fix-names"
    )
    command.write(source, {**official, "categories": [{"id": 366, "name": "Hat"}]})
    assert "category 366 ('Hat') is not in the table of corrections" in command.error("fix-names")
    table = command.root / "fix.csv"
    table.write_text("id,old,new\n1,a\n")
    assert "line 2 is '1,a', expected id,old,new" in command.error("fix-names", "--csv", table)
    command.write(f"{TRAIN}_fixname.json", official)
    assert "none of the 2 images is in" in command.error("filter-missing")
    command.write(f"{TRAIN}_fixname.json", {**official, "images": [{"id": 7}]})
    assert "image 7 has no 'file_name'" in command.error("filter-missing")
