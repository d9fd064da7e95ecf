"""Catalogs of data sets and the registration of the well-known ones."""

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_lvis_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES


@pytest.fixture
def name():
    yield "catalog_test"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "catalog_test" in catalog.list():
            catalog.remove("catalog_test")


def test_function_runs_at_each_get(name):
    calls = []
    DatasetCatalog.register(name, lambda: calls.append(1) or [{"n": len(calls)}])
    assert name in DatasetCatalog
    assert DatasetCatalog.get(name) == [{"n": 1}]
    assert DatasetCatalog.get(name) == [{"n": 2}]
    assert name in DatasetCatalog.list()


def test_name_is_registered_once(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match=name):
        DatasetCatalog.register(name, list)
    DatasetCatalog.remove(name)
    with pytest.raises(AssertionError):
        DatasetCatalog.register(name, [])
    with pytest.raises(KeyError, match=name):
        DatasetCatalog.get(name)


def test_metadata_is_written_once(name):
    metadata = MetadataCatalog.get(name)
    assert metadata.set(thing_classes=["a"], more=1) is metadata
    metadata.thing_classes = ["a"]
    with pytest.raises(AssertionError, match="thing_classes"):
        metadata.thing_classes = ["b"]
    assert MetadataCatalog.get(name) is metadata
    assert metadata.as_dict() == {"name": name, "thing_classes": ["a"], "more": 1}
    assert metadata.get("absent", 3) == 3


def test_missing_metadata_names_what_there_is(name):
    metadata = MetadataCatalog.get(name)
    with pytest.raises(AttributeError, match="absent"):
        _ = metadata.absent
    metadata.evaluator_type = "coco"
    with pytest.raises(AttributeError, match="evaluator_type"):
        _ = metadata.absent


def test_former_names_of_metadata_work(name):
    metadata = MetadataCatalog.get(name)
    metadata.class_names = ["a"]
    assert metadata.thing_classes == ["a"]
    assert metadata.class_names == ["a"]


def test_well_known_data_sets_are_registered():
    names = DatasetCatalog.list()
    for known in (
        *("coco_2014_train", "coco_2017_train", "coco_2017_val", "lvis_v1_train", "lvis_v1_val"),
        *("ade20k_sem_seg_train", "ade20k_sem_seg_val", "cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val"),
    ):
        assert known in names
    assert MetadataCatalog.get("coco_2017_val").evaluator_type == "coco"
    assert MetadataCatalog.get("coco_2017_val").json_file.endswith("coco/annotations/instances_val2017.json")
    assert MetadataCatalog.get("lvis_v1_val").evaluator_type == "lvis"
    assert MetadataCatalog.get("lvis_v1_val").image_root.endswith("coco/")
    assert len(MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes) == 150
    assert MetadataCatalog.get("ade20k_sem_seg_val").ignore_label == 255
    assert len(MetadataCatalog.get("cityscapes_fine_sem_seg_val").stuff_classes) == 19


def test_registering_other_data_under_a_known_name_fails():
    with pytest.raises(AssertionError):
        register_coco_instances("coco_2017_val", {}, "mine.json", "images")
    with pytest.raises(AssertionError):
        register_lvis_instances("lvis_v1_val", {}, "mine.json", "images")


def test_classes_of_coco():
    metadata = _get_builtin_metadata("coco")
    assert len(metadata["thing_classes"]) == len(metadata["thing_colors"]) == 80
    assert metadata["thing_dataset_id_to_contiguous_id"][90] == 79
    assert 12 not in metadata["thing_dataset_id_to_contiguous_id"]
    assert COCO_CATEGORIES[0]["name"] == metadata["thing_classes"][0] == "person"
    with pytest.raises(KeyError):
        _get_builtin_metadata("no such data set")


def test_classes_of_lvis():
    metadata = get_lvis_instances_meta("lvis_v1_train")
    assert len(metadata["thing_classes"]) == len(metadata["class_image_count"]) == len(LVIS_CATEGORIES) == 1203
    assert metadata["thing_classes"][0] == "aerosol_can"
    by_id = {row["id"]: row for row in LVIS_CATEGORIES}
    assert metadata["class_image_count"][161] == {"id": 162, "image_count": by_id[162]["image_count"]}
    assert metadata["thing_classes"][161] == by_id[162]["synonyms"][0] == "horned_cow"
    assert [sum(row["frequency"] == letter for row in LVIS_CATEGORIES) for letter in "rcf"] == [337, 461, 405]
    assert get_lvis_instances_meta("my_cocofied_set")["thing_classes"][0] == "person"
