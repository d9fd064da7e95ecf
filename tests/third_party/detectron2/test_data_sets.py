"""COCO and LVIS json, folders of label maps, writing COCO json."""

import copy
import json

import pycocotools.mask as mask_util
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets import load_coco_json, load_lvis_json, load_sem_seg
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode
from tests.third_party.detectron2.data_files import coco_content, lvis_content, write_json

BOX = {"bbox": [4, 5, 20, 10], "iscrowd": 0}
ANNOTATIONS = [
    {"id": 1, "image_id": 1, "category_id": 90, **BOX},
    {
        "id": 2,
        "image_id": 1,
        "category_id": 1,
        "bbox": [4, 5, 20, 10],
        "iscrowd": 1,
        "segmentation": {"counts": [100, 50, 2922], "size": [48, 64]},
    },
    {"id": 3, "image_id": 2, "category_id": 1, **BOX, "segmentation": [[1, 2, 3, 4]]},
    {"id": 4, "image_id": 2, "category_id": 13, **BOX, "segmentation": []},
]
# What the real detectron2 raises depends on the flaw; the bundled one raises an error that is each of these.
BAD_FILE = (AssertionError, KeyError, ValueError)


@pytest.fixture
def name():
    yield "data_sets_test"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "data_sets_test" in catalog.list():
            catalog.remove("data_sets_test")


def test_coco_json_is_loaded_by_its_rules(tmp_path, name):
    records = load_coco_json(write_json(tmp_path, coco_content(ANNOTATIONS)), str(tmp_path), name)
    assert [record["image_id"] for record in records] == [1, 2, 3]
    assert records[0]["file_name"] == str(tmp_path / "1.png")
    first, crowd = records[0]["annotations"]
    assert first == {"iscrowd": 0, "bbox": [4, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2}
    assert crowd["category_id"] == 0
    assert crowd["iscrowd"] == 1
    assert mask_util.area(crowd["segmentation"]) == 50
    assert [annotation["category_id"] for annotation in records[1]["annotations"]] == [1]
    assert "segmentation" not in records[1]["annotations"][0]
    assert records[2]["annotations"] == []
    assert MetadataCatalog.get(name).thing_classes == ["person", "stop sign", "toothbrush"]
    assert MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id == {1: 0, 13: 1, 90: 2}
    kept = filter_images_with_only_crowd_annotations(records)
    assert [record["image_id"] for record in kept] == [1, 2]


def test_keypoints_become_continuous_coordinates(tmp_path):
    annotation = {**ANNOTATIONS[0], "keypoints": [3, 4, 2, 0, 0, 0]}
    records = load_coco_json(write_json(tmp_path, coco_content([annotation])), "")
    assert records[0]["annotations"][0]["keypoints"] == [3.5, 4.5, 2, 0.5, 0.5, 0]


def test_annotations_of_unknown_images_are_dropped(tmp_path):
    path = write_json(tmp_path, coco_content([*ANNOTATIONS, {**ANNOTATIONS[0], "id": 9, "image_id": 99}]))
    assert sum(len(record["annotations"]) for record in load_coco_json(path, "")) == 3


@pytest.mark.parametrize("changes", [{"category_id": 12}, {"bbox": []}, {"id": 1}, {"ignore": 1}])
def test_coco_annotation_against_the_rules_is_an_error(tmp_path, name, changes):
    path = write_json(tmp_path, coco_content([ANNOTATIONS[0], {**ANNOTATIONS[0], "id": 2, **changes}]))
    with pytest.raises(BAD_FILE):
        load_coco_json(path, "", name)


def test_lvis_json_is_loaded_by_its_rules(tmp_path):
    records = load_lvis_json(write_json(tmp_path, lvis_content()), "coco/")
    assert [record["image_id"] for record in records] == [1, 2, 3, 4]
    classes = [annotation["category_id"] for record in records for annotation in record["annotations"]]
    assert classes == [2, 12, 1202, 4]
    assert records[0]["neg_category_ids"] == [2, 13]
    assert records[0]["not_exhaustive_category_ids"] == [3]
    assert records[2]["annotations"] == []
    assert records[0]["file_name"] == "coco/train2017/000000000001.jpg"
    assert records[3]["file_name"] == "coco/val2017/000000000004.jpg"
    assert records[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS


@pytest.mark.parametrize("flaw", ["short polygon", "no polygon", "no segmentation", "repeated id"])
def test_lvis_annotation_against_the_rules_is_an_error(tmp_path, flaw):
    content = copy.deepcopy(lvis_content())
    annotation = content["annotations"][1]
    if flaw == "no segmentation":
        del annotation["segmentation"]
    elif flaw == "repeated id":
        annotation["id"] = 11
    else:
        annotation["segmentation"] = [[1, 2, 3, 4]] if flaw == "short polygon" else []
    with pytest.raises(BAD_FILE):
        load_lvis_json(write_json(tmp_path, content), "coco/")


def test_images_and_label_maps_are_paired_by_name(tmp_path):
    for folder, names in {"images": "abc", "labels": "bc"}.items():
        (tmp_path / folder).mkdir()
        for stem in names:
            (tmp_path / folder / f"{stem}{'.jpg' if folder == 'images' else '.png'}").touch()
    records = load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images"))
    assert records == [
        {
            "file_name": str(tmp_path / "images" / f"{stem}.jpg"),
            "sem_seg_file_name": str(tmp_path / "labels" / f"{stem}.png"),
        }
        for stem in "bc"
    ]


def test_no_label_maps_at_all_is_an_error(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(BAD_FILE):
        load_sem_seg(str(tmp_path), str(tmp_path))


def test_cityscapes_pairs(tmp_path):
    for folder, ending in (("leftImg8bit", "leftImg8bit.png"), ("gtFine", "gtFine_labelTrainIds.png")):
        for stem in ("bonn/bonn_000001_000019", "aachen/aachen_000000_000019"):
            path = tmp_path / folder / "train" / f"{stem}_{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    polygons = {"imgWidth": 2048, "imgHeight": 1024, "objects": []}
    for stem in ("bonn/bonn_000001_000019", "aachen/aachen_000000_000019"):
        (tmp_path / "gtFine" / "train" / f"{stem}_gtFine_polygons.json").write_text(json.dumps(polygons))
    records = load_cityscapes_semantic(str(tmp_path / "leftImg8bit" / "train"), str(tmp_path / "gtFine" / "train"))
    assert {record["file_name"].rsplit("/", 2)[1] for record in records} == {"bonn", "aachen"}
    for record in records:
        assert (record["height"], record["width"]) == (1024, 2048)
        expected = record["file_name"].replace("leftImg8bit/", "gtFine/")
        assert record["sem_seg_file_name"] == expected.replace("_leftImg8bit.png", "_gtFine_labelTrainIds.png")


def test_written_coco_json_loads_as_the_same_data(tmp_path, name):
    square = [4, 5, 24, 5, 24, 15, 4, 15]
    annotations = [{**ANNOTATIONS[0], "segmentation": [square]}, ANNOTATIONS[1], ANNOTATIONS[3]]
    path = write_json(tmp_path, coco_content(annotations))
    DatasetCatalog.register(name, lambda: load_coco_json(path, str(tmp_path), name))
    DatasetCatalog.get(name)  # the first load writes the class names
    output = tmp_path / "new" / "written.json"
    convert_to_coco_json(name, str(output))
    content = json.loads(output.read_text())
    assert [annotation["area"] for annotation in content["annotations"]] == [200, 50, 200]
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3]
    assert [category["id"] for category in content["categories"]] == [1, 13, 90]
    again, before = load_coco_json(str(output), "", name), load_coco_json(path, str(tmp_path), name)
    for mask in (again[0]["annotations"][1]["segmentation"], before[0]["annotations"][1]["segmentation"]):
        mask["counts"] = mask["counts"].decode() if isinstance(mask["counts"], bytes) else mask["counts"]
    assert again == before


def test_written_file_is_kept_unless_told_otherwise(tmp_path, name):
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).thing_classes = ["a"]
    output = tmp_path / "written.json"
    output.write_text("as it was")
    convert_to_coco_json(name, str(output), allow_cached=True)
    assert output.read_text() == "as it was"
    convert_to_coco_json(name, str(output), allow_cached=False)
    assert json.loads(output.read_text())["categories"] == [{"id": 0, "name": "a"}]
