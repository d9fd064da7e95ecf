import os
import pickle

import pytest
import torch

from prompt_pretrain.classification.imagenet import (
    read_imagenet,
    read_imagenet21k,
    read_imagenet21k_small_classes,
)
from prompt_pretrain.errors import InputError

WNIDS = ("n02084071", "n02121808", "n02691156")
TREE = {
    "class_list": list(WNIDS),
    "class_description": dict(zip(WNIDS, ("crane", "sea_lion", "crane"), strict=True)),
    "class_tree_list": [[0], [1, 0], [2, 1, 0]],
}


@pytest.fixture
def imagenet(tmp_path, make_class):
    for wnid in WNIDS:
        make_class(tmp_path / "imagenet/images/train" / wnid, 3)
        make_class(tmp_path / "imagenet/images/val" / wnid, 2)
        (tmp_path / "imagenet/images/train" / wnid / ".DS_Store").write_bytes(b"x")
    names = ["n09999999 unused", *(f"{wnid} class {i} name" for i, wnid in enumerate(WNIDS))]
    (tmp_path / "imagenet/classnames.txt").write_text("\n".join(names))
    return tmp_path


@pytest.fixture
def imagenet21k(tmp_path, make_class):
    for wnid in WNIDS:
        make_class(tmp_path / "imagenet21k_resized/imagenet21k_train" / wnid, 3)
        make_class(tmp_path / "imagenet21k_resized/imagenet21k_val" / wnid, 2)
    return tmp_path


def test_imagenet(imagenet):
    data = read_imagenet(imagenet)
    assert data.class_names == ("class 0 name", "class 1 name", "class 2 name")
    assert data.folders == WNIDS
    assert (len(data.train), len(data.val)) == (9, 6)
    assert data.val is data.test
    assert data.test[0].path.endswith("imagenet/images/val/n02084071/0.png")


def test_imagenet_needs_a_name_for_every_folder(imagenet, make_class):
    make_class(imagenet / "imagenet/images/train/n00000001", 1)
    with pytest.raises(InputError, match="1 of 4 class folders have no class name in .*classnames.txt: n00000001"):
        read_imagenet(imagenet)
    (imagenet / "imagenet/classnames.txt").unlink()
    with pytest.raises(InputError, match="classnames.txt: No such file"):
        read_imagenet(imagenet)


def test_imagenet21k_takes_names_from_the_tree(imagenet21k):
    torch.save(TREE, imagenet21k / "imagenet21k_resized/imagenet21k_miil_tree.pth")
    data = read_imagenet21k(imagenet21k)
    assert data.class_names == ("crane", "sea_lion", "crane")
    assert data.class_counts == (3, 3, 3)
    assert data.val is data.test
    assert len(data.test) == 6


def test_imagenet21k_takes_built_in_names_without_a_tree(imagenet21k, make_class):
    assert read_imagenet21k(imagenet21k).class_names == ("dog", "domestic cat", "airplane")
    make_class(imagenet21k / "imagenet21k_resized/imagenet21k_train/n00000001", 1)
    message = r"1 of 4 .* no class name in the built-in list of ImageNet-21K \(.*miil_tree.pth is missing\): n00000001"
    with pytest.raises(InputError, match=message):
        read_imagenet21k(imagenet21k)


def test_a_names_file_comes_before_the_tree(imagenet21k):
    torch.save(TREE, imagenet21k / "imagenet21k_resized/imagenet21k_miil_tree.pth")
    (imagenet21k / "names.txt").write_text("\n".join(f"{wnid} {wnid[-1]}" for wnid in WNIDS))
    assert read_imagenet21k(imagenet21k, imagenet21k / "names.txt").class_names == ("1", "8", "6")


def test_a_malicious_tree_is_not_run(imagenet21k):
    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {imagenet21k}/owned",)

    tree = imagenet21k / "imagenet21k_resized/imagenet21k_miil_tree.pth"
    tree.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError, match="nothing in it was run; get the class tree again, or remove it"):
        read_imagenet21k(imagenet21k)
    assert not (imagenet21k / "owned").exists()


def test_small_classes_are_a_label_set_of_their_own(imagenet21k, make_class):
    small = imagenet21k / "imagenet21k_resized/imagenet21k_small_classes"
    make_class(small / "n02691156", 2)
    make_class(small / "n02084071", 1)
    data = read_imagenet21k_small_classes(imagenet21k)
    assert data.class_names == ("dog", "airplane")
    assert data.train is data.val is data.test
    assert [item.label for item in data.test] == [0, 1, 1]


def test_archives_stand_for_folders(tmp_path, make_tar, png):
    for wnid in WNIDS:
        for split in ("train", "val"):
            make_tar(tmp_path / f"imagenet21k_resized/imagenet21k_{split}/{wnid}.tar", {f"{wnid}_1.JPEG": png(0)})
    data = read_imagenet21k(tmp_path)
    assert data.folders == WNIDS
    assert data.train[1].path.endswith("imagenet21k_train/n02121808.tar::n02121808_1.JPEG")


def test_missing_data_tells_the_layout(tmp_path):
    with pytest.raises(
        InputError, match="No such file or directory; ImageNet-21K needs one folder or .tar archive per"
    ):
        read_imagenet21k(tmp_path)
    with pytest.raises(InputError, match="ImageNet needs one folder or .tar archive per class in .*/images/train and"):
        read_imagenet(tmp_path)
    with pytest.raises(InputError, match="the small classes of ImageNet-21K need"):
        read_imagenet21k_small_classes(tmp_path)
