"""Registered segmentation sets, their metadata, and the pairing of images with label maps."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import segmentation  # noqa: F401
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.errors import InputError
from segmentation.data.datasets import (
    dataset_root,
    load_binary_mask,
    load_sem_seg,
    pair_files,
    register_segmentation_datasets,
)
from segmentation.data.datasets.builtin import pseudo_label_root

COCO, VOC = "coco/stuffthingmaps_detectron2/", "VOC2012/annotations_detectron2/"
PUBLISHED = [  # name, images, label maps, classes
    ("coco_2017_train_stuff_sem_seg", "coco/train2017", COCO + "train2017", 171),
    ("coco_2017_test_stuff_sem_seg", "coco/val2017", COCO + "val2017", 171),
    ("coco_2017_train_stuff_base_sem_seg", "coco/train2017", COCO + "train2017_base", 156),
    ("coco_2017_test_stuff_base_sem_seg", "coco/val2017", COCO + "val2017_base", 156),
    ("coco_2017_train_stuff_novel_sem_seg", "coco/train2017", COCO + "train2017_novel", 15),
    ("coco_2017_test_stuff_novel_sem_seg", "coco/val2017", COCO + "val2017_novel", 15),
    ("coco_2017_train_stuff_sem_seg_classification", "coco/train2017", COCO + "train2017", 171),
    ("coco_2017_test_stuff_sem_seg_classification", "coco/val2017", COCO + "val2017", 171),
    ("coco_2017_train_stuff_base_sem_seg_classification", "coco/train2017", COCO + "train2017_base", 156),
    (
        "coco_2017_train_stuff_10k_sem_seg",
        "coco/coco_stuff_10k/images_detectron2/train",
        "coco/coco_stuff_10k/annotations_detectron2/train",
        171,
    ),
    ("voc_sem_seg_train", "VOC2012/JPEGImages", VOC + "train", 20),
    ("voc_sem_seg_test", "VOC2012/JPEGImages", VOC + "val", 20),
    ("voc_base_sem_seg_train", "VOC2012/JPEGImages", VOC + "train_base", 15),
    ("voc_novel_sem_seg_test", "VOC2012/JPEGImages", VOC + "val_novel", 5),
    ("voc_base_sem_seg_train_classification", "VOC2012/JPEGImages", VOC + "train_base", 15),
    ("voc_sem_seg_test_classification", "VOC2012/JPEGImages", VOC + "val", 20),
    ("pcontext_sem_seg_train", "pcontext/train/image", "pcontext/train/label", 59),
    ("pcontext_sem_seg_val", "pcontext/val/image", "pcontext/val/label", 59),
    (
        "ade20k_full_sem_seg_val",
        "ADE20K_2021_17_01/images_detectron2/validation",
        "ADE20K_2021_17_01/annotations_detectron2/validation",
        847,
    ),
    (
        "ade20k_sem_seg_val",
        "ADEChallengeData2016/images/validation",
        "ADEChallengeData2016/annotations_detectron2/validation",
        150,
    ),
]


@pytest.mark.parametrize(("name", "images", "label_maps", "classes"), PUBLISHED)
def test_published_names_and_folders(name, images, label_maps, classes):
    assert name in DatasetCatalog.list()
    metadata = MetadataCatalog.get(name)
    assert metadata.image_root == os.path.join(dataset_root(), images)
    assert metadata.sem_seg_root == os.path.join(dataset_root(), label_maps)
    assert len(metadata.stuff_classes) == classes
    assert metadata.evaluator_type == ("classification" if name.endswith("classification") else "sem_seg")
    assert metadata.ignore_label == (65535 if "full" in name else 255)


def test_all_names_of_configs_are_registered():
    """Also those of detectron2, and of self-training."""
    names = ["cityscapes_fine_sem_seg_val", "coco_2017_train_stuff_sem_seg_pseudo", "voc_sem_seg_train_pseudo"]
    assert set(names) <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("cityscapes_fine_sem_seg_val").ignore_label == 255
    for name in names[1:]:
        metadata = MetadataCatalog.get(name)
        assert metadata.sem_seg_root == pseudo_label_root()
        assert metadata.stuff_classes == MetadataCatalog.get(name.removesuffix("_pseudo")).stuff_classes


def test_coco_stuff_splits():
    full = MetadataCatalog.get("coco_2017_test_stuff_sem_seg")
    sets = full.evaluation_set
    assert {name: len(indices) for name, indices in sets.items()} == {
        "base": 156,
        "novel": 15,
        "novel_thing": 7,
        "novel_stuff": 8,
    }
    assert sorted(sets["base"] + sets["novel"]) == list(range(171))
    assert [full.stuff_classes[i] for i in sets["novel_thing"]][:3] == ["cow", "giraffe", "suitcase"]
    assert [i for i, seen in enumerate(full.trainable_flag) if seen] == sets["base"]
    ids = full.stuff_dataset_id_to_contiguous_id
    assert list(ids.values()) == list(range(171))
    assert ids[13] == 11  # the hole of COCO's 12
    base = MetadataCatalog.get("coco_2017_train_stuff_base_sem_seg")
    assert base.stuff_classes == [full.stuff_classes[i] for i in sets["base"]]
    assert base.trainable_flag == [1] * 156
    categories = {label: category for category, label in ids.items()}
    assert base.stuff_dataset_id_to_contiguous_id == {categories[row]: i for i, row in enumerate(sets["base"])}


def test_voc_splits():
    full = MetadataCatalog.get("voc_sem_seg_test")
    assert full.evaluation_set == {"base": list(range(15))}
    assert full.trainable_flag == [1] * 15 + [0] * 5
    assert full.stuff_classes[15:] == MetadataCatalog.get("voc_novel_sem_seg_train").stuff_classes
    assert full.get("stuff_dataset_id_to_contiguous_id") is None
    assert MetadataCatalog.get("pcontext_sem_seg_val").get("trainable_flag") is None


def test_metadata_survive_pickling():
    metadata = MetadataCatalog.get("voc_novel_sem_seg_test")
    copy = pickle.loads(pickle.dumps(metadata))
    assert copy.as_dict() == metadata.as_dict()
    assert copy.trainable_flag == [0] * 5


def test_importing_reads_no_facts():
    code = """
import segmentation.data.datasets
from prompt_pretrain.metadata import read_metadata
assert read_metadata.cache_info().misses == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_folders_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    monkeypatch.setenv("DETECTRON2_SEM_PSEUDO", "/pseudo")
    assert (dataset_root(), pseudo_label_root()) == ("/data", "/pseudo")
    monkeypatch.delenv("DETECTRON2_SEM_PSEUDO")
    assert pseudo_label_root() == "output/inference"


def test_names_are_registered_once():
    with pytest.raises(AssertionError, match="has metadata already"):
        register_segmentation_datasets("x", "y")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("images", "label_maps", "pairs"),
    [
        (["a.jpg", "b.jpg", "c.jpg"], ["c.png", "b.png"], ["b", "c"]),
        (["a.jpg", "b.jpg", "c.jpg"], ["b.png", "c.png", "d.png"], ["b", "c"]),  # equal numbers, other names
        (["x/a.jpg", "y/a.jpg"], ["y/a.png", "x/a.png"], ["x/a", "y/a"]),
        (["a.JPG", "b.jpg", ".b.jpg", "b.txt"], ["a.png", "b.png"], ["a", "b"]),
    ],
)
def test_pairs_have_equal_names(tmp_path, images, label_maps, pairs):
    touch(tmp_path / "images", *images)
    touch(tmp_path / "labels", *label_maps)
    found = load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images"))
    for record, name in zip(found, pairs, strict=True):
        assert os.path.splitext(record["file_name"])[0] == str(tmp_path / "images" / name)
        assert os.path.splitext(record["sem_seg_file_name"])[0] == str(tmp_path / "labels" / name)


def test_files_that_cannot_be_paired(tmp_path, caplog):
    images, labels = tmp_path / "images", tmp_path / "labels"
    with pytest.raises(InputError, match=f"folder {images} does not exist, expected every image"):
        pair_files(str(images), str(labels), ["jpg"], ["png"])
    touch(images, "a.jpg", "b.png")
    labels.mkdir()
    with pytest.raises(InputError, match=f"folder {labels} holds no label map \\*.png"):
        pair_files(str(images), str(labels), ["jpg"], ["png"])
    touch(labels, "c.png")
    with pytest.raises(InputError, match="no label map in .* has the name of an image"):
        pair_files(str(images), str(labels), ["jpg"], ["png"])
    touch(labels, "a.png")
    pair_files(str(images), str(labels), ["jpg"], ["png"])
    assert "1 images in" in caplog.text and "the 1 that have both are used" in caplog.text
    touch(images, "a.png")
    with pytest.raises(InputError, match="have the same name; keep one image"):
        pair_files(str(images), str(labels), ["jpg", "png"], ["png"])


def test_one_record_per_class(tmp_path, caplog):
    touch(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    touch(tmp_path / "train", "a.png", "b.png", "c.png")
    counts = tmp_path / "train_label_count.json"
    arguments = str(tmp_path / "train"), str(tmp_path / "images")
    with pytest.raises(InputError, match="train_label_count.json not found.*prepare_label_count.py"):
        load_binary_mask(*arguments)
    for text, message in [
        ("{", "no valid JSON"),
        ('{"a.png": 3}', "not an object of lists of labels"),
        ('{"d.png": [3]}', "lists no label of a label map"),
    ]:
        counts.write_text(text)
        with pytest.raises(InputError, match=message):
            load_binary_mask(*arguments)
    counts.write_text(json.dumps({"a.png": [4, 7], "b.png": []}))
    found = load_binary_mask(*arguments)
    assert [(Path(record["file_name"]).name, record["category_id"]) for record in found] == [("a.jpg", 4), ("a.jpg", 7)]
    assert "knows nothing of 1 label maps" in caplog.text
