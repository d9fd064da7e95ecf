"""Conversion of the label maps of the segmentation sets."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from tests.datasets.preparation_tools import Command

COCO_ROW = [0, 10, 11, 12, 20, 24, 90, 91, 171, 181, 255]


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    return lambda name: Command(f"prepare_{name}", tmp_path, monkeypatch, capsys)


def save(path, rows, palette=False, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(rows, dtype))
    if palette:
        image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)


def load(path):
    return np.asarray(Image.open(path)).tolist()


def test_coco_stuff(prepare, tmp_path):
    raw, made = tmp_path / "coco/stuffthingmaps", tmp_path / "coco/stuffthingmaps_detectron2"
    save(raw / "train2017/all.png", [COCO_ROW])
    save(raw / "train2017/seen.png", [[0, 10, 255]])
    save(raw / "train2017/unseen.png", [[20, 171, 11]])
    save(raw / "train2017/nothing.png", [[255, 11]])
    save(raw / "val2017/seen.png", [[181]])
    out = prepare("coco_stuff")()
    assert "holds 5 label maps, published are 123,287" in out
    assert "train2017: 3 of 4 label maps" in out and "val2017_novel: 0 of 1" in out
    assert load(made / "train2017/all.png") == [[0, 10, 255, 11, 19, 23, 255, 80, 160, 170, 255]]
    assert load(made / "train2017_base/all.png") == [[0, 10, 255, 11, 255, 255, 255, 73, 255, 155, 255]]
    assert load(made / "train2017_novel/all.png") == [[255, 255, 255, 255, 0, 1, 255, 255, 14, 255, 255]]
    names = {folder.name: sorted(path.name for path in folder.iterdir()) for folder in made.iterdir()}
    assert names == {
        "train2017": ["all.png", "seen.png", "unseen.png"],
        "train2017_base": ["all.png", "seen.png"],
        "train2017_novel": ["all.png", "unseen.png"],
        "val2017": ["seen.png"],
        "val2017_base": ["seen.png"],
        "val2017_novel": [],
    }


def test_a_second_run_changes_nothing_and_tells_of_older_maps(prepare, tmp_path):
    raw, made = tmp_path / "coco/stuffthingmaps", tmp_path / "coco/stuffthingmaps_detectron2"
    save(raw / "val2017/a.png", [[0, 20]])
    command = prepare("coco_stuff")
    command("--splits", "val2017")
    before = {path: path.read_bytes() for path in made.rglob("*.png")}
    command("--splits", "val2017")
    assert {path: path.read_bytes() for path in made.rglob("*.png")} == before
    save(raw / "val2017/a.png", [[0, 1]])
    save(made / "val2017/b.png", [[0]])
    assert "holds 1 older label maps such as b.png; remove them" in command("--splits", "val2017")
    assert not (made / "val2017_novel/a.png").exists()


def test_maps_that_cannot_be_converted(prepare, tmp_path):
    command, raw = prepare("coco_stuff"), tmp_path / "coco/stuffthingmaps/val2017"
    assert "no *.png in" in command.error("--splits", "val2017")
    save(raw / "a.png", [[0, 182, 200]])
    assert f"{raw}/a.png holds 182, 200, which is no label of this data set" in command.error("--splits", "val2017")
    save(raw / "a.png", np.random.RandomState(0).randint(0, 99, (20, 20)))
    (raw / "a.png").write_bytes((raw / "a.png").read_bytes()[:40])
    assert f"label map {raw}/a.png cannot be read" in command.error("--splits", "val2017")
    save(raw / "a.png", np.zeros((2, 2, 3)))
    assert "a.png has 3 channels" in command.error("--splits", "val2017")
    save(raw / "a.png", [[300]], dtype=np.uint16)
    assert "a.png holds uint16 values, expected 8 bits" in command.error("--splits", "val2017")
    save(raw / "a.png", [[255]])
    assert "no label map in" in command.error("--splits", "val2017")
    assert "--workers must be positive" in command.error("--splits", "val2017", "--workers", 0)


def write_voc(root, train=("t1", "t2"), val=("v1",)):
    folder = root / "VOC2012"
    for name in {*train, *val}:
        save(folder / f"SegmentationClassAug/{name}.png", [[0, 1, 15, 16, 20, 255]], palette=True)
    for split, names in (("train", train), ("val", val)):
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder / "annotations_detectron2"


def names_in(folder):
    return sorted(path.stem for path in folder.iterdir())


def test_voc(prepare, tmp_path):
    made = write_voc(tmp_path)
    save(tmp_path / "VOC2012/SegmentationClassAug/t2.png", [[0, 20]], palette=True)
    prepare("voc")()
    assert load(made / "train/t1.png") == [[255, 0, 14, 15, 19, 255]]
    assert load(made / "train_base/t1.png") == [[255, 0, 14, 255, 255, 255]]
    assert load(made / "val_novel/v1.png") == [[255, 255, 255, 0, 4, 255]]
    found = {folder.name: names_in(folder) for folder in made.iterdir()}
    train, val = ["t1", "t2"], ["v1"]
    assert found == {
        "train": train,
        "train_base": ["t1"],
        "train_novel": train,
        "val": val,
        "val_base": val,
        "val_novel": val,
    }


def test_voc_leaks_only_when_asked_to(prepare, tmp_path):
    made = write_voc(tmp_path)
    prepare("voc")("--as-released")
    assert names_in(made / "train_base") == ["t1", "t2", "v1"]
    assert names_in(made / "val_base") == []
    assert names_in(made / "val_novel") == ["t1", "t2"]
    assert names_in(made / "val") == ["v1"]
    assert "train_base also holds 1 older label maps such as v1.png" in prepare("voc")()


def test_voc_lists(prepare, tmp_path):
    made, command = write_voc(tmp_path), prepare("voc")
    for split in ("train", "val"):
        (tmp_path / f"VOC2012/{split}.txt").unlink()
    assert "no list of train images" in command.error()
    lists = tmp_path / "VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text("/JPEGImages/t1.jpg /SegmentationClassAug/t1.png\n\n")
    (lists / "val.txt").write_text("v1\n")
    command()
    assert names_in(made / "train") == ["t1"]
    (lists / "val.txt").write_text("\n")
    assert "val.txt holds no names" in command.error()
    (lists / "val.txt").write_text("v1\nt1\n")
    assert "the training list holds 1 names of the validation list, e.g. t1" in command.error()
    (lists / "val.txt").write_text("v2\n")
    assert "SegmentationClassAug/v2.png does not exist" in command.error()
    assert "nowhere.txt not found" in command.error("--train-list", tmp_path / "nowhere.txt")


def test_ade20k(prepare, tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        save(folder / f"annotations/{split}/a.png", [[0, 1, 150]])
        save(folder / f"annotations/{split}/empty.png", [[0]])
    prepare("ade20k")()
    assert load(folder / "annotations_detectron2/training/a.png") == [[255, 0, 149]]
    assert load(folder / "annotations_detectron2/validation/empty.png") == [[255]]
    save(folder / "annotations/training/a.png", [[151]])
    assert "a.png holds 151" in prepare("ade20k").error()


def segments(ids):
    """Red, green and blue as the release encodes object ids; blue tells objects of one class apart."""
    ids = np.asarray(ids)
    return np.stack([ids // 256 * 10 + 3, ids % 256, np.full_like(ids, 77)], axis=-1)


def test_ade20k_full(prepare, tmp_path):
    folder = tmp_path / "ADE20K_2021_17_01"
    raw = prepare("ade20k_full").module.segmentation_facts("ade20k_847")["raw_id"]
    row = [[0, raw[0], raw[846], 1 if 1 not in raw else 0]] * 3
    for split in ("training", "validation"):
        place = folder / f"images/ADE/{split}/urban/street"
        save(place / f"{split}_1_seg.png", segments(row))
        Image.new("RGB", (4, 3)).save(place / f"{split}_1.jpg")
    prepare("ade20k_full")()
    label_map = Image.open(folder / "annotations_detectron2/training/training_1.tif")
    assert np.asarray(label_map).dtype == np.uint16
    assert np.asarray(label_map).tolist() == [[65535, 0, 846, 65535]] * 3
    assert Image.open(folder / "images_detectron2/validation/validation_1.jpg").size == (4, 3)
    Image.new("RGB", (5, 3)).save(folder / "images/ADE/training/urban/street/training_1.jpg")
    assert "fetch both again" in prepare("ade20k_full").error()
    (folder / "images/ADE/training/urban/street/training_1.jpg").write_bytes(b"no image")
    assert "training_1.jpg cannot be read" in prepare("ade20k_full").error()
    (folder / "images/ADE/training/urban/street/training_1.jpg").unlink()
    assert "training_1.jpg does not exist" in prepare("ade20k_full").error()
    save(folder / "images/ADE/training/urban/park/training_1_seg.png", segments(row))
    assert "holds two files training_1_seg.png for training" in prepare("ade20k_full").error()


def test_large_images_are_shrunk_with_their_maps(prepare, tmp_path):
    module = prepare("ade20k_full").module
    assert module.shrunk((512, 600)) == (512, 600)
    assert module.shrunk((1024, 2048)) == (512, 1024)
    ids = np.zeros((600, 700), np.int64)
    save(tmp_path / "a_seg.png", segments(ids))
    Image.new("RGB", (700, 600)).save(tmp_path / "a.jpg")
    module.convert(tmp_path / "a_seg.png", tmp_path / "images", tmp_path / "labels")
    for path in ("images/a.jpg", "labels/a.tif"):
        assert Image.open(tmp_path / path).size == (597, 512)


def write_pcontext(root, ids, compressed=True):
    """One training image with a mask for each of the ids, side by side."""
    objects = []
    for column, number in enumerate(ids):
        mask = np.zeros((2, len(ids)), np.uint8, order="F")
        mask[:, column] = 1
        rle = mask_util.encode(mask)
        counts = rle["counts"].decode()
        if not compressed:
            counts = [2 * column, 2, 2 * (len(ids) - column - 1)]
        objects.append(
            {"image_id": 7, "category_id": number, "segmentation": {"size": [2, len(ids)], "counts": counts}}
        )
    image = {"image_id": 7, "file_name": "2008_7.jpg", "phase": "val"}
    folder = root / "pcontext"
    (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (len(ids), 2)).save(folder / "JPEGImages/2008_7.jpg")
    (folder / "trainval_merged.json").write_text(json.dumps({"images": [image], "annos_segmentation": objects}))
    return folder


@pytest.mark.parametrize("compressed", [True, False])
def test_pcontext(prepare, tmp_path, compressed):
    folder = write_pcontext(tmp_path, [0, 2, 458], compressed)
    assert "0 images of train, 1 images of val" in prepare("pcontext")()
    assert load(folder / "val/label/2008_7.png") == [[255, 0, 58]] * 2
    assert (folder / "val/image/2008_7.jpg").read_bytes() == (folder / "JPEGImages/2008_7.jpg").read_bytes()


def test_pcontext_from_label_maps(prepare, tmp_path):
    folder = write_pcontext(tmp_path, [0, 2])
    save(tmp_path / "masks/2008_7.png", [[458, 0]], dtype=np.uint16)
    prepare("pcontext")("--masks", tmp_path / "masks")
    assert load(folder / "val/label/2008_7.png") == [[58, 255]]


def test_pcontext_that_cannot_be_used(prepare, tmp_path):
    command = prepare("pcontext")
    assert "trainval_merged.json not found" in command.error()
    folder = write_pcontext(tmp_path, [1])
    assert "image 7 has the ids 1, which are none of the 59 classes" in command.error()
    source = folder / "trainval_merged.json"
    content = json.loads(source.read_text())
    for changed, text in [
        ({"images": []}, "has no list 'images'"),
        ({"annos_segmentation": [{"image_id": 7}]}, "entry 0 of 'annos_segmentation' has no 'category_id'"),
        ({"images": [{**content["images"][0], "phase": "test"}]}, "image 7 has the phase 'test'"),
        ({"annos_segmentation": [{**content["annos_segmentation"][0], "image_id": 8}]}, "image 7 has no masks"),
        (
            {"annos_segmentation": [{**content["annos_segmentation"][0], "segmentation": [[1]]}]},
            "not run-length encoded",
        ),
    ]:
        source.write_text(json.dumps(content | changed))
        assert text in command.error()
    source.write_text("{")
    assert "is no valid JSON" in command.error()
    write_pcontext(tmp_path, [2])
    (folder / "JPEGImages/2008_7.jpg").unlink()
    assert "image" in command.error() and not (folder / "val/label/2008_7.png").exists()
    (folder / "JPEGImages").rmdir()
    assert "give VOC 2010's images by --images" in command.error()


def test_label_counts(prepare, tmp_path):
    command = prepare("label_count")
    assert "is below" in command.error()
    write_voc(tmp_path)
    prepare("voc")()
    save(tmp_path / "coco/stuffthingmaps_detectron2/val2017/a.png", [[9, 3, 255, 3]])
    command()
    assert command.read("VOC2012/annotations_detectron2/train_base_label_count.json") == {
        "t1.png": [0, 14],
        "t2.png": [0, 14],
    }
    assert command.read("VOC2012/annotations_detectron2/val_label_count.json") == {"v1.png": [0, 14, 15, 19]}
    assert command.read("coco/stuffthingmaps_detectron2/val2017_label_count.json") == {"a.png": [3, 9]}
    save(tmp_path / "own/b.tif", [[65535, 700]], dtype=np.uint16)
    command(tmp_path / "own", "--ignore", 65535)
    assert command.read("own_label_count.json") == {"b.tif": [700]}
