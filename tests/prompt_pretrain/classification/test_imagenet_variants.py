"""ImageNetV2, Sketch, A and R in their published layouts."""

import logging

import pytest

from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import load_vocabulary
from tests.classification_recipes import DOMAIN_LAYOUTS, WNIDS, write_domain_set, write_imagenet_v2


@pytest.mark.parametrize("name", DOMAIN_LAYOUTS)
def test_folders_are_labelled_by_rank_and_named_by_wordnet_id(name, tmp_path, caplog):
    write_domain_set(tmp_path, name)
    with caplog.at_level(logging.WARNING):
        data = load_classification_data(name, tmp_path, test_only=True)
    built_in = load_vocabulary("imagenet1k")
    names = dict(zip(built_in.ids, built_in.class_names, strict=True))
    assert (data.name, data.folders) == (name, WNIDS)
    assert data.class_names == tuple(names[wnid] for wnid in WNIDS)
    assert [item.label for item in data.test] == [0, 0, 1, 1, 2, 2]
    assert (len(data.train), data.class_counts) == (0, ())
    assert "holds 3 class folders, the published" in caplog.text


def test_without_training_images_the_test_images_are_all_there_is(tmp_path, caplog):
    write_domain_set(tmp_path, "ImageNetR")
    with caplog.at_level(logging.WARNING):
        data = load_classification_data("imagenet_r", tmp_path)
    assert list(data.train) == list(data.val) == list(data.test)
    assert "ImageNetR has no training images: its test images would be trained on" in caplog.text


def test_names_come_from_the_own_file_then_from_that_of_imagenet(tmp_path):
    write_domain_set(tmp_path, "ImageNetA")
    (tmp_path / "imagenet").mkdir()
    lines = [f"{wnid} name {i}" for i, wnid in enumerate(WNIDS)]
    (tmp_path / "imagenet/classnames.txt").write_text("\n".join(lines))
    load = lambda: load_classification_data("ImageNetA", tmp_path, test_only=True).class_names  # noqa: E731
    assert load() == ("name 0", "name 1", "name 2")
    (tmp_path / "imagenet-adversarial/classnames.txt").write_text("\n".join(reversed(lines)).replace("name", "own"))
    assert load() == ("own 0", "own 1", "own 2")
    (tmp_path / "imagenet-adversarial/classnames.txt").write_text(lines[0])
    with pytest.raises(
        InputError, match="2 of 3 class folders have no class name in .*imagenet-adversarial/classnames"
    ):
        load()


def test_folders_of_v2_are_labels(tmp_path, caplog):
    folder = write_imagenet_v2(tmp_path)
    with caplog.at_level(logging.WARNING):
        data = load_classification_data("ImageNetV2", tmp_path, test_only=True)
    assert {item.path.split("/")[-2]: item.label for item in data.test} == {"0": 0, "1": 1, "10": 10, "2": 2}
    assert data.class_names == load_vocabulary("imagenet1k").class_names
    assert "has images of 4 classes of 1000" in caplog.text
    (tmp_path / "imagenetv2/classnames.txt").write_text("\n".join(f"n{i:08d} name {i}" for i in range(10)))
    with pytest.raises(
        InputError, match=r"val/10 is not a class: .*classnames.txt names 10, so folders are called 0 to 9"
    ):
        load_classification_data("ImageNetV2", tmp_path, test_only=True)
    (folder / "10").rename(folder / "02")
    with pytest.raises(InputError, match="holds class 2 twice"):
        load_classification_data("ImageNetV2", tmp_path, test_only=True)
    (folder / "02").rename(folder / "n01440764")
    with pytest.raises(InputError, match="val/n01440764 is not a class"):
        load_classification_data("ImageNetV2", tmp_path, test_only=True)


def test_an_empty_class_and_missing_data_are_errors(tmp_path):
    with pytest.raises(
        InputError, match="No such file or directory; ImageNetV2 needs .* called by its number, 0 to 999,"
    ):
        load_classification_data("ImageNetV2", tmp_path)
    with pytest.raises(
        InputError, match="ImageNetSketch needs one folder of images per class, called by its WordNet id"
    ):
        load_classification_data("ImageNetSketch", tmp_path)
    folder = write_domain_set(tmp_path, "ImageNetSketch")
    (folder / "n01440764").mkdir()
    with pytest.raises(InputError, match="no images for class .*/n01440764; add some or remove the empty class"):
        load_classification_data("ImageNetSketch", tmp_path)
