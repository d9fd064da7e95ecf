import os

import pytest
import torch

from prompt_pretrain.classification.class_tree import read_class_tree
from prompt_pretrain.errors import InputError

TREE = {
    "class_list": ["n1", "n2", "n3"],
    "class_description": {"n1": "sea_lion", "n2": "crane", "n3": "crane"},
    "class_tree_list": [[0], [1, 0], [2, 1, 0]],
}


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_torch_formats_load(tmp_path, zipped):
    torch.save(TREE, tmp_path / "tree.pth", _use_new_zipfile_serialization=zipped)
    tree = read_class_tree(tmp_path / "tree.pth")
    assert tree.class_list == ("n1", "n2", "n3")
    assert tree.class_description == TREE["class_description"]
    assert tree.class_tree_list == ((0,), (1, 0), (2, 1, 0))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_file_is_not_run(tmp_path, zipped):
    value = {**TREE, "class_list": Malicious(tmp_path / "owned")}
    torch.save(value, tmp_path / "tree.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="holds more than plain data, so it was not loaded"):
        read_class_tree(tmp_path / "tree.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("value", [[1, 2], {"class_list": ["n1"]}, {"class_description": {"n1": 3}}])
def test_other_content_is_an_error(tmp_path, value):
    torch.save(value, tmp_path / "tree.pth")
    with pytest.raises(InputError, match="has no 'class_description' from WordNet ids to names"):
        read_class_tree(tmp_path / "tree.pth")


def test_damaged_and_missing_files_are_errors(tmp_path):
    with pytest.raises(InputError, match="nowhere.pth: No such file or directory"):
        read_class_tree(tmp_path / "nowhere.pth")
    torch.save(TREE, tmp_path / "tree.pth")
    data = (tmp_path / "tree.pth").read_bytes()
    for damaged in (b"", b"garbage", data[: len(data) // 2]):
        (tmp_path / "tree.pth").write_bytes(damaged)
        with pytest.raises(InputError, match="tree.pth is damaged"):
            read_class_tree(tmp_path / "tree.pth")


@pytest.mark.parametrize(
    "entry",
    [
        {"class_list": 3},
        {"class_tree_list": [0]},
        {"class_tree_list": [["x"]]},
        {"class_tree_list": torch.ones(1)},
    ],
)
def test_lists_of_another_kind_are_named(tmp_path, entry):
    torch.save({"class_description": {"n1": "a"}} | entry, tmp_path / "tree.pth")
    with pytest.raises(InputError, match="tree.pth: 'class_list' or 'class_tree_list' is no list"):
        read_class_tree(tmp_path / "tree.pth")
