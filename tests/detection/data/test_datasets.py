"""Registered data sets and their loaders, on files of a few images."""

import json
import os
import pickle
import re

import pytest

import detection  # noqa: F401  makes detectron2 importable
from detection.data.datasets import custom_load_lvis_json, dataset_root, load_oid_json
from detection.data.datasets.builtin import register_detection_datasets
from detection.data.datasets.lazy_metadata import register_lazy_metadata
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from prompt_pretrain.errors import InputError
from tests.golden_files import GOLDEN_FOLDER

POLYGON = [1, 1, 9, 1, 9, 9]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with our data sets, and no others, registered below it."""
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})
    register_detection_datasets(str(tmp_path))
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def lvis_image(number, folder="train2017", **extra):
    url = f"http://images.cocodataset.org/{folder}/{number:012d}.jpg"
    return {"id": number, "coco_url": url, "height": 48, "width": 64, **extra}


def lvis_content(images, annotations, category_ids=range(1, 1204)):
    rows = [
        {"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 8, 8], **extra}
        for number, (image, category, extra) in enumerate(annotations, 1)
    ]
    categories = [{"id": number, "name": f"c{number}"} for number in category_ids]
    return {"images": images, "annotations": rows, "categories": categories}


def test_published_names_paths_and_classes():
    table = json.loads((GOLDEN_FOLDER / "reference" / "detection_dataset_registry.json").read_text())
    counts = {
        "coco80": 80,
        "coco_base48": 48,
        "coco_novel17": 17,
        "lvis1203": 1203,
        "lvis22047": 22047,
        "objects365": 365,
        "openimages500": 500,
    }
    for name, image_root, json_file, evaluator_type, classes in table["rows"]:
        assert name in DatasetCatalog.list()
        metadata = MetadataCatalog.get(name)
        assert metadata.image_root == os.path.join(dataset_root(), image_root)
        assert metadata.json_file == os.path.join(dataset_root(), json_file)
        assert metadata.evaluator_type == evaluator_type
        assert len(metadata.thing_classes) == counts[classes]
    assert len(MetadataCatalog.get("lvis_v1_minival").thing_classes) == 1203
    assert MetadataCatalog.get("objects365_v2_val").thing_classes[37] == "Monitor/TV"
    assert MetadataCatalog.get("coco_zeroshot_val").thing_dataset_id_to_contiguous_id[5] == 0


def test_the_data_root_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert dataset_root() == "/data"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert dataset_root() == "datasets"


def test_metadata_are_read_when_asked_for(root):
    calls = []

    def read():
        calls.append(1)
        return {"thing_classes": ["a", "b"]}

    register_lazy_metadata("lazy_made_up", read)
    metadata = MetadataCatalog.get("lazy_made_up")
    metadata.set(json_file="x.json")
    assert metadata.json_file == "x.json"
    assert not calls
    assert metadata.get("thing_classes") == ["a", "b"]
    assert metadata.as_dict() == {"name": "lazy_made_up", "json_file": "x.json", "thing_classes": ["a", "b"]}
    assert metadata.get("thing_colors") is None
    assert calls == [1]
    assert pickle.loads(pickle.dumps(metadata)) == metadata
    with pytest.raises(AttributeError):
        _ = metadata.thing_colors
    with pytest.raises(AssertionError):
        metadata.thing_classes = ["c"]
    with pytest.raises(AssertionError, match="has metadata already"):
        register_lazy_metadata("lazy_made_up", read)


def test_lvis_norare(root):
    images = [
        lvis_image(3),
        lvis_image(1, neg_category_ids=[2, 13], not_exhaustive_category_ids=[3]),
        lvis_image(2, neg_category_ids=[1203]),
        lvis_image(4, "val2017", neg_category_ids=[5]),
    ]
    annotations = [
        (1, 3, {"segmentation": [POLYGON]}),
        (1, 13, {}),
        (2, 1203, {"segmentation": [POLYGON, POLYGON]}),
        (4, 5, {"iscrowd": 1}),
    ]
    write(root / "lvis/lvis_v1_train_norare.json", lvis_content(images, annotations))
    records = DatasetCatalog.get("lvis_v1_train_norare")
    assert [record["image_id"] for record in records] == [1, 2, 3, 4]
    assert records[3]["file_name"] == str(root / "coco/val2017/000000000004.jpg")
    assert records[0]["neg_category_ids"] == [1, 12]
    assert records[0]["not_exhaustive_category_ids"] == [3]
    assert [[row["category_id"] for row in record["annotations"]] for record in records] == [[2, 12], [1202], [], []]
    assert records[0]["annotations"][0] == {
        "bbox": [1, 1, 8, 8],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 2,
        "segmentation": [POLYGON],
    }
    assert "segmentation" not in records[0]["annotations"][1]
    assert "pos_category_ids" not in records[0]
    metadata = MetadataCatalog.get("lvis_v1_train_norare")
    assert metadata.thing_dataset_id_to_contiguous_id[1203] == 1202
    assert len(metadata.thing_classes) == 1203


def test_image_labels_captions_and_archives(tmp_path):
    images = [
        {"id": 1, "file_name": "a.jpg", "height": 4, "width": 5, "pos_category_ids": [3], "neg_category_ids": [1200]},
        {"id": 2, "tar_index": 7, "height": 4, "width": 5, "pos_category_ids": [3, 12]},
        {"id": 3, "file_name": "COCO_val2014_000000000007.jpg", "height": 4, "width": 5, "captions": ["x y"]},
        {"id": 4, "coco_url": "https://elsewhere/images/c.jpg", "height": 4, "width": 5, "pos_category_ids": []},
    ]
    path = write(tmp_path / "a.json", lvis_content(images, [], (12, 3, 1200)))
    records = custom_load_lvis_json(path, "folder")
    assert [record.get("pos_category_ids") for record in records] == [[0], [0, 1], None, []]
    assert records[0]["neg_category_ids"] == [2]
    assert records[1]["tar_index"] == 7
    assert "file_name" not in records[1]
    assert records[2]["file_name"] == "folder/000000000007.jpg"
    assert records[2]["captions"] == ["x y"]
    assert records[3]["file_name"] == "folder/images/c.jpg"
    assert all(record["annotations"] == [] for record in records)


def test_a_short_polygon_stays_with_a_warning(tmp_path, caplog):
    content = lvis_content([lvis_image(1)], [(1, 1, {"segmentation": [POLYGON, [1, 1, 2, 2]]})])
    records = custom_load_lvis_json(write(tmp_path / "a.json", content), "folder/")
    assert records[0]["annotations"][0]["segmentation"] == [POLYGON, [1, 1, 2, 2]]
    assert "1 annotations have a polygon of fewer than 3 points" in caplog.text


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ("image id 1 is not unique", lvis_content([lvis_image(1)] * 2, [])),
        ("annotation number 0 has no 'id'", {**lvis_content([], []), "annotations": [{"image_id": 1}]}),
        ("lists no categories", lvis_content([], [], [])),
        ("has no list 'images'", {"annotations": [], "categories": []}),
        ("'height' is None, expected a positive integer", lvis_content([{"id": 1, "file_name": "a"}], [])),
        ("has none of 'file_name', 'coco_url'", lvis_content([{"id": 1, "height": 1, "width": 1}], [])),
        ("'coco_url' is 'a.jpg'", lvis_content([{"id": 1, "coco_url": "a.jpg"}], [])),
        (
            "image 1: pos_category_ids holds 1204, which is none of the 1203 categories",
            lvis_content([lvis_image(1, pos_category_ids=[1204])], []),
        ),
        ("neg_category_ids holds 0", lvis_content([lvis_image(1, neg_category_ids=[0])], [])),
        ("annotation 1 of image 1: category_id 1204 is none", lvis_content([lvis_image(1)], [(1, 1204, {})])),
        ("'bbox' is [1, 2]", lvis_content([lvis_image(1)], [(1, 1, {"bbox": [1, 2]})])),
        ("whose width or height is negative", lvis_content([lvis_image(1)], [(1, 1, {"bbox": [1, 2, -1, 2]})])),
        ("expected four finite numbers", lvis_content([lvis_image(1)], [(1, 1, {"bbox": [1, 2, "3", 2]})])),
        ("'segmentation' is empty", lvis_content([lvis_image(1)], [(1, 1, {"segmentation": []})])),
        ("category id 5000 is number 1203 of LVIS", lvis_content([], [], [*range(1, 1203), 5000])),
    ],
)
def test_errors_of_the_extended_loader(tmp_path, message, content):
    with pytest.raises(InputError, match=re.escape(message)):
        custom_load_lvis_json(write(tmp_path / "a.json", content), "folder")


def test_errors_of_files(root):
    with pytest.raises(InputError, match="lvis_v1_train_norare.json not found; DETECTRON2_DATASETS"):
        DatasetCatalog.get("lvis_v1_train_norare")
    with pytest.raises(InputError, match="zhiyuan_objv2_val_fixname.json not found; DETECTRON2_DATASETS"):
        DatasetCatalog.get("objects365_v2_val")
    (root / "broken.json").write_text("{")
    with pytest.raises(InputError, match="is no valid JSON"):
        custom_load_lvis_json(str(root / "broken.json"), "folder")
    write(root / "lvis/lvis_v1_train_norare.json", lvis_content([], [], range(1, 11)))
    with pytest.raises(InputError, match="has 10 categories, but lvis_v1_train_norare is registered with 1203 classes"):
        DatasetCatalog.get("lvis_v1_train_norare")


def coco_content(names, annotations=()):
    return {
        "images": [{"id": number, "file_name": f"{number}.jpg", "height": 48, "width": 64} for number in (2, 1)],
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }


def test_objects365_with_the_original_names_is_an_error(root):
    names = list(MetadataCatalog.get("objects365_v2_val").thing_classes)
    path = root / "objects365/annotations/zhiyuan_objv2_val_fixname.json"
    box = {"id": 1, "image_id": 1, "category_id": 365, "bbox": [0, 0, 3, 3]}
    write(path, coco_content(names, [box]))
    records = DatasetCatalog.get("objects365_v2_val")
    assert records[0]["file_name"] == str(root / "objects365/val/1.jpg")
    assert records[0]["annotations"][0]["category_id"] == 364
    names[37] = "Moniter/TV"
    write(path, coco_content(names))
    with pytest.raises(InputError, match="are not the 365 classes of objects365_v2_val; prepare the file"):
        DatasetCatalog.get("objects365_v2_val")


def test_open_images(tmp_path):
    box = {"image_id": 1, "category_id": 4, "bbox": [0, 0, 3, 3]}
    content = coco_content(
        "abc",
        [
            {"id": 1, **box, "iscrowd": 1},
            {"id": 2, **box, "segmentation": [[0, 0, 1, 1]]},
            {"id": 3, **box, "segmentation": [POLYGON, [0, 0, 1, 1]]},
            {"id": 4, **box, "segmentation": {"size": [48, 64], "counts": [0, 10, 48 * 64 - 10]}},
            {"id": 5, **box, "image_id": 77},
        ],
    )
    content["categories"] = [{"id": number, "name": str(number)} for number in (9, 4)]
    content["images"][1]["neg_category_ids"] = [9]
    records = load_oid_json(write(tmp_path / "a.json", content), "folder", "oid_made_up")
    assert [record["image_id"] for record in records] == [1, 2]
    assert records[0]["neg_category_ids"] == [1]
    assert records[1]["neg_category_ids"] == []
    annotations = records[0]["annotations"]
    assert [(row["category_id"], row["iscrowd"]) for row in annotations] == [(0, 1), (0, 0), (0, 0)]
    assert annotations[1]["segmentation"] == [POLYGON]
    assert isinstance(annotations[2]["segmentation"]["counts"], bytes)
    assert MetadataCatalog.get("oid_made_up").thing_classes == ["4", "9"]
    MetadataCatalog.remove("oid_made_up")
    content["images"][0].pop("file_name")
    with pytest.raises(InputError, match="image 2: 'file_name' is missing"):
        load_oid_json(write(tmp_path / "a.json", content), "folder")
