import logging

import pytest

from prompt_pretrain.classification.folders import read_image_folder
from prompt_pretrain.errors import InputError


def test_splits_with_names(tmp_path, make_class):
    for folder, count in {
        "train/n2": 3,
        "train/n10": 2,
        "val/n2": 1,
        "val/n10": 1,
        "test/n2": 2,
        "test/n10": 1,
    }.items():
        make_class(tmp_path / folder, count)
    (tmp_path / "classnames.txt").write_text("n2 tench\nn10 great white shark\nn99 unused\n")
    data = read_image_folder(tmp_path)
    assert data.folders == ("n10", "n2")
    assert data.class_names == ("great white shark", "tench")
    assert data.class_counts == (2, 3)
    assert [(item.path, item.label) for item in data.train] == [
        *((f"{tmp_path}/train/n10/{i}.png", 0) for i in range(2)),
        *((f"{tmp_path}/train/n2/{i}.png", 1) for i in range(3)),
    ]
    assert (len(data.val), len(data.test)) == (2, 3)


def test_a_flat_set_is_training_and_test_set_and_names_itself(tmp_path, make_class):
    make_class(tmp_path / "sea lion", 2)
    make_class(tmp_path / "train", 1)  # the vehicle: it holds images, not classes
    data = read_image_folder(tmp_path)
    assert data.class_names == ("sea lion", "train")
    assert data.train is data.test is data.val
    assert len(data.test) == 3


@pytest.mark.parametrize(
    ("present", "val", "test"), [("val", "val", "val"), ("test", "test", "test"), ("valid", "valid", "valid")]
)
def test_a_missing_split_borrows_from_the_other(tmp_path, make_class, present, val, test):
    make_class(tmp_path / "train" / "a", 3)
    make_class(tmp_path / present / "a", 1)
    (tmp_path / "annotations").mkdir()  # no class, since there are splits
    data = read_image_folder(tmp_path)
    assert data.val[0].path == f"{tmp_path}/{val}/a/0.png"
    assert data.test[0].path == f"{tmp_path}/{test}/a/0.png"


def test_without_a_train_folder_the_test_images_serve(tmp_path, make_class):
    make_class(tmp_path / "val" / "a", 2)
    make_class(tmp_path / "split_fewshot", 0)
    data = read_image_folder(tmp_path)
    assert len(data.train) == 2
    assert data.train is data.test


def test_classes_missing_in_a_split_are_logged_and_unknown_ones_an_error(tmp_path, make_class, caplog):
    make_class(tmp_path / "train" / "a", 1)
    make_class(tmp_path / "train" / "b", 1)
    make_class(tmp_path / "test" / "b", 1)
    with caplog.at_level(logging.WARNING):
        data = read_image_folder(tmp_path)
    assert [item.label for item in data.test] == [1]
    assert "test has images of 1 classes" in caplog.text
    make_class(tmp_path / "test" / "c", 1)
    with pytest.raises(InputError, match="test has class c, which .*train has not; give both the same classes"):
        read_image_folder(tmp_path)


def test_a_folder_without_a_name_is_an_error(tmp_path, make_class):
    make_class(tmp_path / "train" / "n1", 1)
    make_class(tmp_path / "train" / "n2", 1)
    names = tmp_path / "names.json"
    names.write_text('{"n1": "tench"}')
    with pytest.raises(InputError, match="1 of 2 class folders have no class name in .*names.json: n2"):
        read_image_folder(tmp_path, names)


def test_missing_and_empty_roots_are_errors(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder; expected one folder or .tar archive"):
        read_image_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no class folders"):
        read_image_folder(tmp_path)
