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
