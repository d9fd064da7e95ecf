"""The ten cross-dataset sets in their published layouts, and everything that can be wrong with a split file."""

import json
import logging

import pytest

from prompt_pretrain.classification.images import open_image
from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.classification.split_sets import SPLIT_SETS, difference_from_published
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import load_vocabulary
from tests.classification_recipes import NAMES, SIZES, SPLIT_LAYOUTS, write_aircraft, write_split_set


@pytest.mark.parametrize("name", SPLIT_LAYOUTS)
def test_a_split_file_says_which_images_are_for_what(name, tmp_path):
    file = write_split_set(tmp_path, name)
    data = load_classification_data(name, tmp_path)
    assert (data.name, data.class_names, data.class_counts) == (name, NAMES, (5, 4, 3))
    for split, counts in SIZES.items():
        items = getattr(data, split)
        assert [item.label for item in items] == [label for label, count in enumerate(counts) for _ in range(count)]
        listed = json.loads(file.read_text())[split]
        images = SPLIT_SETS[name].image_folder(tmp_path)
        assert [item.path for item in items] == [str(images / path) for path, *_ in listed]
        assert open_image(items[0].path).size == (40, 36)


def test_names_of_the_published_config_files_are_aliases(tmp_path):
    write_split_set(tmp_path, "DescribableTextures")
    for alias in ("dtd", "DTD", "DescribableTextures"):
        assert load_classification_data(alias, tmp_path).name == "DescribableTextures"


def test_few_shot_sampling_and_class_subsets_follow_the_published_rules(tmp_path):
    write_split_set(tmp_path, "OxfordPets")
    four = load_classification_data("OxfordPets", tmp_path, num_shots=4, seed=2)
    assert [item.label for item in four.train] == [0] * 4 + [1] * 4 + [2] * 3
    assert [item.label for item in four.val] == [0, 0, 1, 1, 2, 2]
    again = load_classification_data("OxfordPets", tmp_path, num_shots=4, seed=2)
    assert list(again.train) == list(four.train)
    assert (tmp_path / "oxford_pets/split_fewshot/shot_4-seed_2.json").exists()
    base = load_classification_data("OxfordPets", tmp_path, subsample_classes="base")
    new = load_classification_data("OxfordPets", tmp_path, subsample_classes="new")
    assert (base.class_names, {item.label for item in base.test}) == (NAMES[:2], {0, 1})
    assert (new.class_names, [item.label for item in new.test]) == (NAMES[2:], [0])


def test_labels_may_be_strings_of_digits(tmp_path):
    file = write_split_set(tmp_path, "UCF101")
    content = json.loads(file.read_text())
    content["train"][5][1] = "1"
    file.write_text(json.dumps(content))
    assert load_classification_data("UCF101", tmp_path).train[5].label == 1


def test_test_images_are_enough_for_testing(tmp_path):
    file = write_split_set(tmp_path, "StanfordCars")
    for path, *_ in json.loads(file.read_text())["train"]:
        (file.parent / path).unlink()
    data = load_classification_data("StanfordCars", tmp_path, test_only=True)
    assert (len(data.train), data.class_counts, len(data.test)) == (0, (), 5)
    with pytest.raises(InputError, match=r"12 of the 12 train images are not in .*stanford_cars, the first is cars_tr"):
        load_classification_data("StanfordCars", tmp_path)
    assert len(SPLIT_SETS["StanfordCars"].read(tmp_path, check_images=False).train) == 12


def test_other_class_names_can_be_given(tmp_path):
    write_split_set(tmp_path, "Food101")
    (tmp_path / "names.json").write_text(json.dumps({name: f"other {name}" for name in NAMES}))
    data = load_classification_data("Food101", tmp_path, names_file=tmp_path / "names.json")
    assert data.class_names[1] == "other colt's foot"


def test_differences_from_the_published_classes_are_told_and_the_file_wins(tmp_path, caplog):
    write_split_set(tmp_path, "Caltech101")
    with caplog.at_level(logging.WARNING):
        assert load_classification_data("Caltech101", tmp_path).num_classes == 3
    assert "3 classes where Caltech101 has 100; the names and labels of the file are used" in caplog.text
    published = load_vocabulary("Caltech101").class_names
    assert difference_from_published("Caltech101", [name.replace("_", " ") for name in published]) == ""
    changed = ("cat", *published[1:])
    assert difference_from_published("Caltech101", changed).startswith("class 0 is 'cat', 'face' in the list of")


def change(content, split, row, column, value):
    content[split][row][column] = value


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: change(c, "test", 4, 0, "gone.jpg"),
            "1 of the 5 test images are not in .*/images, the first is gone",
        ),
        (lambda c: change(c, "test", 4, 2, "dog"), "label 2 is 'yin yang' in 'train' but 'dog' in 'test'"),
        (lambda c: change(c, "train", 0, 2, "dog"), "label 0 is 'dog' in 'train' but 'water_lily' in 'train'"),
        (lambda c: change(c, "test", 4, 1, 3), r"class 3 \('yin yang'\) of the 4 classes has no training images"),
        (lambda c: c["test"].pop(), r"class 2 \('yin yang'\) of the 3 classes has no test images"),
        (
            lambda c: change(c, "val", 0, 1, 7),
            r"class 3 \('\?'\) \(and 4 more\) of the 8 classes has no training images",
        ),
        (lambda c: c["train"].clear(), "lists no training images"),
        (lambda c: c["test"].clear(), "lists no test images"),
        (lambda c: c.pop("val"), "has no list 'val'; expected .*; get the published split file"),
        (lambda c: change(c, "val", 1, 1, True), "entry 1 of 'val', .*, has no label, a number from 0"),
        (lambda c: change(c, "val", 1, 1, -1), "has no label"),
        (lambda c: change(c, "val", 1, 2, " "), "has no class name"),
        (lambda c: change(c, "val", 1, 0, ""), "has no image path"),
        (lambda c: change(c, "val", 1, 0, "../a.jpg"), "has a path that leaves the image folder"),
        (lambda c: change(c, "val", 1, 0, "/a.jpg"), "has a path that leaves the image folder"),
        (lambda c: c["val"][1].pop(), r"is not \[path, label, class name\]"),
    ],
)
def test_a_bad_split_file_is_an_error_that_names_it(edit, message, tmp_path):
    file = write_split_set(tmp_path, "OxfordPets")
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        load_classification_data("OxfordPets", tmp_path)
    assert "split_zhou_OxfordPets.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_split_file_tells_how_to_get_one(tmp_path):
    file = write_split_set(tmp_path, "SUN397")
    file.write_text(file.read_text()[:100])
    with pytest.raises(InputError, match=r"split_zhou_SUN397.json is not JSON .*; get the published split file"):
        load_classification_data("SUN397", tmp_path)
    file.unlink()
    with pytest.raises(
        InputError, match="No such file or directory; .*: python datasets/prepare_split.py SUN397 --root"
    ):
        load_classification_data("SUN397", tmp_path)
    with pytest.raises(
        InputError, match="eurosat is not a folder; EuroSAT needs images in .*/eurosat/2750 and .*EuroSAT"
    ):
        load_classification_data("EuroSAT", tmp_path)


def test_aircraft_has_lists_of_its_own(tmp_path):
    write_aircraft(tmp_path)
    data = load_classification_data("fgvc_aircraft", tmp_path)
    assert data.class_names == ("707-320", "Boeing 717", "F-16A/B")
    assert [item.label for item in data.test] == [0, 0, 1, 1, 2]
    assert data.train[0].path == str(tmp_path / "fgvc_aircraft/images/1000001.jpg")


def test_bad_lists_of_aircraft_are_errors(tmp_path):
    folder = write_aircraft(tmp_path)
    good = (folder / "images_variant_val.txt").read_text()
    (folder / "images_variant_val.txt").write_text("\n1000013 Boeing 999\n" + good)
    with pytest.raises(InputError, match="images_variant_val.txt line 2, '1000013 Boeing 999', is not an image number"):
        load_classification_data("FGVCAircraft", tmp_path)
    (folder / "images_variant_val.txt").unlink()
    with pytest.raises(InputError, match="images_variant_val.txt: No such file or directory; extract the data folder"):
        load_classification_data("FGVCAircraft", tmp_path)
    (folder / "images_variant_val.txt").write_text(good)
    (folder / "variants.txt").write_text("707-320\nBoeing 717\nF-16A/B\n707-320\n")
    with pytest.raises(InputError, match="variants.txt lists '707-320' twice"):
        load_classification_data("FGVCAircraft", tmp_path)
