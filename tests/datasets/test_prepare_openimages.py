"""Open Images csv files of three classes: Animal /m/0jbk is above Cattle /m/01xq0k1; House /m/03jm5 is alone."""

import pytest

from tests.datasets.preparation_tools import Command, jpeg

ANIMAL, CATTLE, HOUSE = ("/m/0jbk", 7), ("/m/01xq0k1", 10), ("/m/03jm5", 11)
TREE = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [
        {"LabelName": ANIMAL[0], "Subcategory": [{"LabelName": CATTLE[0]}]},
        {"LabelName": HOUSE[0]},
    ],
}
BOXES = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
LABELS = "ImageID,LabelName,Confidence\n"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    command = Command("prepare_openimages", tmp_path, monkeypatch, capsys)
    command.write("oid/annotations/challenge-2019-label500-hierarchy.json", TREE)
    return command


def write(command, part, boxes, labels):
    for kind, text in (("bbox", BOXES + boxes), ("human-imagelabels", LABELS + labels)):
        (command.root / f"oid/annotations/challenge-2019-{part}-detection-{kind}.csv").write_text(text)


def write_images(command, *names):
    for name in names:
        path = command.root / "oid/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(40, 20))


def test_validation_is_expanded(command):
    boxes = f"ab,{CATTLE[0]},0.25,0.5,0.5,1,1\nab,/m/unknown,0,1,0,1,0\n"
    labels = f"ab,{HOUSE[0]},1\nab,{CATTLE[0]},1\ncd,{ANIMAL[0]},0\nef,{HOUSE[0]},1\n"
    write(command, "validation", boxes, labels)
    write_images(command, "validation/ab.jpg", "validation/cd.jpg")
    assert "3 images are annotated, 1 of them missing" in command("--part", "val", "--workers", 1)
    content = command.read("oid/annotations/oid_challenge_2019_val_expanded.json")
    sizes = {"width": 40, "height": 20}
    assert content["images"] == [
        {"id": 1, "file_name": "ab.jpg", **sizes, "pos_category_ids": [7, 10, 11], "neg_category_ids": []},
        {"id": 2, "file_name": "cd.jpg", **sizes, "pos_category_ids": [], "neg_category_ids": [7, 10]},
    ]
    box = {"image_id": 1, "bbox": [10.0, 10.0, 10.0, 10.0], "area": 100.0, "iscrowd": 1}
    assert content["annotations"] == [{"id": 1, **box, "category_id": 10}, {"id": 2, **box, "category_id": 7}]
    assert content["categories"][6] == {"id": 7, "name": "Animal", "freebase_id": ANIMAL[0]}
    assert len(content["categories"]) == 500


def test_training_is_not_expanded(command):
    labels = f"ab,{HOUSE[0]},0\ncd,{ANIMAL[0]},1\n"
    write(command, "train", f"ab,{CATTLE[0]},0.25,0.5,0.5,1,0\n", labels)
    write_images(command, "a/ab.jpg", "c/cd.jpg")
    command("--part", "train")
    content = command.read("oid/annotations/oid_challenge_2019_train_bbox.json")
    assert [(row["file_name"], row["pos_category_ids"], row["neg_category_ids"]) for row in content["images"]] == [
        ("a/ab.jpg", [10], [11])
    ]
    assert [row["category_id"] for row in content["annotations"]] == [10]


def test_errors(command):
    assert "challenge-2019-validation-detection-bbox.csv not found; download it" in command.error()
    write(command, "validation", f"ab,{CATTLE[0]},0.5,0.25,0.5,1,0\n", "")
    assert "a box of image ab has 0.5 to 0.25" in command.error()
    write(command, "validation", f"ab,{CATTLE[0]},x,0.25,0.5,1,0\n", "")
    assert "a box of image ab has a side that is no number" in command.error()
    write(command, "validation", f"ab,{CATTLE[0]},0.2,0.25,0.5,1,0\n", f"ab,{CATTLE[0]},0.5\n")
    assert "a label of image ab has the confidence '0.5', expected 0 or 1" in command.error()
    labels = command.root / "oid/annotations/challenge-2019-validation-detection-human-imagelabels.csv"
    labels.write_text("ImageID,LabelName\n")
    assert "has no column Confidence" in command.error()
    labels.write_text(LABELS)
    assert "--workers must be positive" in command.error("--workers", 0)
    write(command, "train", f"ab,{CATTLE[0]},0.2,0.25,0.5,1,0\n", "")
    assert run_alone(command, "--part", "train").endswith("give it by --images")
    hierarchy = command.root / "oid/annotations/challenge-2019-label500-hierarchy.json"
    hierarchy.write_text("{")
    assert "is no valid JSON" in command.error()
    hierarchy.unlink()
    assert "hierarchy.json not found; download it" in command.error()


def run_alone(command, *argv):
    """The message of an error that comes after a warning about each image."""
    with pytest.raises(ValueError) as caught:
        command.module.main([*argv, "--root", str(command.root)])
    return str(caught.value)
