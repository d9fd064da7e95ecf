import pytest

from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.errors import InputError


@pytest.mark.parametrize("place", ["", "shapeworld"])
def test_plain_class_folders(tmp_path, make_class, place):
    for split in ("train", "val"):
        make_class(tmp_path / place / split / "plain red star", 2)
    data = load_classification_data("ShapeWorld", tmp_path)
    assert (data.name, data.class_names, len(data.train), len(data.test)) == ("ShapeWorld", ("plain red star",), 2, 2)


def test_imagenet21k_folders(tmp_path, make_class):
    for split in ("train", "val"):
        make_class(tmp_path / "shapeworld/imagenet21k_resized" / f"imagenet21k_{split}" / "n0", 2)
    (tmp_path / "names.txt").write_text("n0 plain red star\n")
    data = load_classification_data("ShapeWorld", tmp_path, names_file=tmp_path / "names.txt")
    assert (data.name, data.class_names, data.folders) == ("ShapeWorld", ("plain red star",), ("n0",))


def test_a_missing_world_tells_how_to_make_it(tmp_path):
    with pytest.raises(
        InputError, match="nowhere is not a folder; make ShapeWorld with: python tools/make_shapeworld.py"
    ):
        load_classification_data("ShapeWorld", tmp_path / "nowhere")


def test_novel_classes_have_test_images_only(tmp_path, make_class):
    make_class(tmp_path / "shapeworld/novel/val/n9", 2)
    (tmp_path / "shapeworld/novel/classnames.txt").write_text("n9 dotted blue ring\n")
    data = load_classification_data("ShapeWorldNovel", tmp_path, test_only=True)
    assert (data.name, data.class_names, len(data.test)) == ("ShapeWorldNovel", ("dotted blue ring",), 2)


def test_a_world_without_novel_classes_tells_how_to_make_one(tmp_path):
    (tmp_path / "shapeworld").mkdir()
    with pytest.raises(InputError, match="no novel classes; make one with: python tools/make_shapeworld.py"):
        load_classification_data("ShapeWorldNovel", tmp_path, test_only=True)
