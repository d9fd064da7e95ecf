import json
import shutil

import numpy as np
import pytest
from PIL import Image

from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.errors import InputError
from prompt_pretrain.regional import crops as crops_module
from prompt_pretrain.regional.crop_data import TRAINING_SET, TrainingSet, read_regional_crops
from prompt_pretrain.regional.crops import CropRules, crop_box, make_crops
from tests.prompt_pretrain.regional import tiny_lvis


@pytest.fixture
def lvis(tmp_path):
    return tiny_lvis.write(tmp_path / "lvis")


def make(lvis, output, **options):
    return make_crops(lvis / "train.json", lvis / "val.json", lvis / "images", output, workers=2, **options)


def test_the_published_rule_truncates_and_stays_inside():
    assert crop_box([10, 10, 8, 6], 64, 48) == (2, 4, 26, 22)
    assert crop_box([56, 40, 8, 8], 64, 48) == (48, 32, 64, 48)
    assert crop_box([10.9, 10.2, 8.5, 6.7], 64, 48, 0) == (10, 10, 19, 16)
    assert crop_box([10, 10, 8, 4], 64, 48, 0.5, square=True) == (6, 4, 22, 20)
    assert crop_box([10, 10, 4, 8], 64, 48, 0.5, square=True) == (4, 6, 20, 22)


def test_crops_labels_and_manifest(lvis, tmp_path):
    found = make(lvis, tmp_path / "crops")
    assert {split: (counts.kept, counts.too_small) for split, counts in found.items()} == {
        "train": (16, 4),
        "val": (16, 4),
        "novel": (4, 0),
    }
    data = load_classification_data("RegionalCrops", tmp_path / "crops")
    assert data.folders == ("dog", "bow_(decorative_ribbons)", "salt-pepper_mill")
    assert data.class_names[2] == "salt/pepper_mill_which_is_a_mill_(for_spices)"
    assert data.class_counts == (8, 4, 4) and len(data.test) == 16 and data.val is data.test
    first = next(item for item in data.train if item.path.endswith("dog/1_000000000001.jpg"))
    assert first.label == 0 and Image.open(first.path).size == (24, 18)
    novel = load_classification_data("RegionalCropsNovel", tmp_path / "crops", test_only=True)
    assert novel.class_names == ("cow_which_is_a_farm_animal",) and len(novel.test) == 4
    rows = [json.loads(line) for line in (tmp_path / "crops" / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 36 and rows[0] == {
        "split": "train",
        "annotation_id": 1,
        "category_id": 1,
        "image": "train2017/000000000001.jpg",
        "bbox": [10, 10, 8, 6],
        "file": "dog/1_000000000001.jpg",
    }


def test_the_quota_draws_by_seed_and_class(lvis, tmp_path):
    def kept(name, **rules):
        counts = make(lvis, tmp_path / name, rules=CropRules(per_class=3, **rules))["train"]
        assert (counts.kept, counts.over_quota) == (9, 7)
        return sorted(path.name for path in (tmp_path / name / "images" / "train").rglob("*.jpg"))

    assert kept("a") == kept("b") != kept("c", seed=4)


def test_an_interrupted_call_is_taken_up_and_other_settings_are_refused(lvis, tmp_path, monkeypatch):
    output = tmp_path / "crops"
    whole = make(lvis, output)
    (output / "images" / "train" / "dog" / "1_000000000001.jpg").unlink()
    (output / "classnames.txt").unlink()
    saved = []
    save = crops_module.save_jpeg
    monkeypatch.setattr(crops_module, "save_jpeg", lambda image, path: (saved.append(path.name), save(image, path)))
    assert make(lvis, output) == whole and saved == ["1_000000000001.jpg"]
    with pytest.raises(InputError, match=r"crops of other settings \(rules\)"):
        make(lvis, output, rules=CropRules(padding=0))
    with pytest.raises(InputError, match="holds something else than crops"):
        make(lvis, lvis)


def test_missing_and_damaged_images_are_left_out(lvis, tmp_path, caplog):
    (lvis / "images" / "train2017" / "000000000002.jpg").unlink()
    (lvis / "images" / "train2017" / "000000000003.jpg").write_bytes(b"no image")
    counts = make(lvis, tmp_path / "crops")["train"]
    assert counts.kept == 8 and len(counts.missing) == 1 and "not an image" in counts.damaged[0]
    assert "not found: 1" in caplog.text
    shutil.rmtree(lvis / "images")
    with pytest.raises(InputError, match="none of the 16 train crops could be cut.*train2017 and val2017"):
        make(lvis, tmp_path / "none")


def test_a_base_class_without_crops_is_in_neither_split(lvis, tmp_path, caplog):
    content = json.loads((lvis / "train.json").read_text())
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] != 2]
    (lvis / "train.json").write_text(json.dumps(content))
    make(lvis, tmp_path / "crops")
    data = load_classification_data("RegionalCrops", tmp_path / "crops")
    assert data.folders == ("dog", "salt-pepper_mill") and "1 base classes have no training crop" in caplog.text


def test_training_and_validation_must_agree(lvis, tmp_path):
    output = tmp_path / "crops"
    make(lvis, output)
    shutil.rmtree(output / "images" / "val" / "dog")  # no validation crop: allowed
    assert len(read_regional_crops(output).test) == 8
    (output / "images" / "val" / "cat").mkdir()
    with pytest.raises(InputError, match="1 folders that the class names lack, first 'cat'"):
        read_regional_crops(output)
    (output / "images" / "val" / "cat").rmdir()
    shutil.rmtree(output / "images" / "train" / "dog")
    with pytest.raises(InputError, match="no image of 1 classes of classnames.txt, first dog"):
        read_regional_crops(output)
    content = json.loads((lvis / "val.json").read_text())
    content["categories"][0]["name"] = "kow"
    (lvis / "val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="differ in their classes, e.g. category 7 'cow'"):
        make(lvis, tmp_path / "other")


def test_web_images_join_the_training_images(lvis, tmp_path):
    make(lvis, tmp_path / "crops")
    picture = tmp_path / "web.jpg"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    TrainingSet(tmp_path / "crops", {"dog": [str(picture)]}).save(tmp_path / "set")
    data = load_classification_data("RegionalCrops", tmp_path / "set")
    assert data.class_counts == (9, 4, 4) and data.train[8].path == str(picture) and len(data.test) == 16
    TrainingSet(tmp_path / "crops", {"cat": []}).save(tmp_path / "set")
    with pytest.raises(InputError, match="web images of 'cat', which is none of the classes"):
        read_regional_crops(tmp_path / "set")
    (tmp_path / "set" / TRAINING_SET).write_text("{}")
    with pytest.raises(InputError, match="training_set.json is damaged"):
        read_regional_crops(tmp_path / "set")
    with pytest.raises(InputError, match="classnames.txt not found; make crops with"):
        read_regional_crops(tmp_path / "nothing")


def test_annotations_that_lead_elsewhere_are_refused(lvis, tmp_path):
    content = json.loads((lvis / "train.json").read_text())

    def expect(message, **changes):
        first, *others = content["images"]
        (lvis / "train.json").write_text(json.dumps({**content, "images": [{**first, **changes}, *others]}))
        with pytest.raises(InputError, match=message):
            make(lvis, tmp_path / message[:8])

    expect("outside the folder of images", coco_url="", file_name="../../etc/passwd")
    expect("image 1 has neither", coco_url="")
    expect("annotation 1 is of image 1, which the file does not list", id=99)
    with pytest.raises(InputError, match="padding of crops is -1"):
        CropRules(padding=-1)
