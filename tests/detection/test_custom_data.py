"""Training and evaluation data from a COCO json and a folder."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import detection  # noqa: F401  makes a detectron2 importable
from detection.custom_data import TEST_NAME, TRAIN_NAME, CustomData, register_custom_data
from detection.task import add_config
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.errors import InputError


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for name in {TRAIN_NAME, TEST_NAME} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def content(**changes: Any) -> dict[str, Any]:
    box = {"bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2]]}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 30, **box},
            {"id": 2, "image_id": 1, "category_id": 30, **box},
            {"id": 3, "image_id": 2, "category_id": 7, **box, "iscrowd": 1},
        ],
        "categories": [{"id": 30, "name": "traffic cone"}, {"id": 7, "name": "red car"}, {"id": 40, "name": "dog"}],
    } | changes


def write(folder: Path, name: str = "train.json", **changes: Any) -> Path:
    (folder / "a.jpg").write_bytes(b"")
    path = folder / name
    path.write_text(json.dumps(content(**changes)))
    return path


def config(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS = True
    cfg.MODEL.CLASS_EMBEDDINGS.PROMPT = "a photo of a {}."
    cfg.MODEL.CLASS_EMBEDDINGS.CLIP = "shapeworld-tiny"
    cfg.merge_from_list([each for pair in keys.items() for each in (pair[0].replace("__", "."), pair[1])])
    return cfg


def arguments(folder: Path, **changes: Any) -> argparse.Namespace:
    given = {"train_json": None, "train_images": None, "test_json": None, "test_images": None}
    return argparse.Namespace(**given | {"eval_only": False, "opts": [], **changes})


def test_a_json_says_what_it_holds(tmp_path: Path) -> None:
    data = CustomData.read(write(tmp_path), tmp_path)
    assert data.class_names == ("red car", "traffic cone", "dog")
    assert data.image_counts == (0, 1, 0)  # a crowd does not count, two things in one image count once
    assert (data.num_images, data.num_annotations, data.masks) == (2, 3, True)


def test_training_data_set_the_vocabulary(tmp_path: Path) -> None:
    cfg = config(MODEL__ROI_BOX_HEAD__USE_FED_LOSS=True, DATALOADER__SAMPLER_TRAIN="MultiDatasetSampler")
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    path = str(write(tmp_path))
    register_custom_data(cfg, arguments(tmp_path, train_json=path, train_images=str(tmp_path)))
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((TRAIN_NAME,), ())
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert path == cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY
    assert not cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS and cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"
    assert MetadataCatalog.get(TRAIN_NAME).thing_classes == ["red car", "traffic cone", "dog"]


def test_frequencies_of_the_data_replace_those_of_the_config(tmp_path: Path) -> None:
    cfg = config(MODEL__ROI_BOX_HEAD__IGNORE_ZERO_CATS=True)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    register_custom_data(cfg, arguments(tmp_path, train_json=str(write(tmp_path)), train_images=str(tmp_path)))
    rows = json.loads(Path(cfg.MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH).read_text())
    assert [(row["id"], row["image_count"]) for row in rows] == [(1, 0), (2, 1), (3, 0)]


def test_what_was_typed_stays(tmp_path: Path) -> None:
    cfg = config()
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "5"]
    cfg.merge_from_list(opts)
    register_custom_data(
        cfg, arguments(tmp_path, train_json=str(write(tmp_path)), train_images=str(tmp_path), opts=opts)
    )
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5  # and fails later, in the comparison of all class counts


def test_evaluation_alone_takes_the_vocabulary_of_the_test_set(tmp_path: Path) -> None:
    cfg = config()
    box = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1]}]
    path = str(write(tmp_path, annotations=box))
    register_custom_data(cfg, arguments(tmp_path, test_json=path, test_images=str(tmp_path), eval_only=True))
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((), (TEST_NAME,))
    assert path == cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert not cfg.MODEL.MASK_ON  # the json has no masks


def test_a_test_set_of_other_classes_gets_its_own_embeddings(tmp_path: Path) -> None:
    other = [{"id": 7, "name": "cat"}, {"id": 30, "name": "cow"}]
    given = {"train_json": str(write(tmp_path)), "test_json": str(write(tmp_path, "test.json", categories=other))}
    args = arguments(tmp_path, **given, train_images=str(tmp_path), test_images=str(tmp_path))
    cfg = config()
    register_custom_data(cfg, args)
    assert cfg.MODEL.RESET_CLS_TESTS and cfg.MODEL.TEST_CLASSIFIERS == []
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    cfg = config(MODEL__ROI_BOX_HEAD__USE_ZEROSHOT_CLS=False)
    with pytest.raises(InputError, match="cannot take others, for its classifier is learned"):
        register_custom_data(cfg, args)


def test_published_embeddings_tell_their_prompt(tmp_path: Path) -> None:
    args = arguments(tmp_path, train_json=str(write(tmp_path)), train_images=str(tmp_path))
    cfg = config(MODEL__CLASS_EMBEDDINGS__PROMPT="")
    register_custom_data(cfg, args)
    assert (cfg.MODEL.CLASS_EMBEDDINGS.PROMPT, cfg.MODEL.CLASS_EMBEDDINGS.CLIP) == ("a", "ViT-B/32")
    cfg = config(MODEL__CLASS_EMBEDDINGS__PROMPT="")
    cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH = "datasets/metadata/lvis_v1_clip_pomp+cname.npy"
    with pytest.raises(InputError, match="its embeddings come from a POMP prompt; set MODEL.CLASS_EMBEDDINGS.PROMPT"):
        register_custom_data(cfg, args)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": []}, "'categories' of .* is empty"),
        ({"categories": [{"id": 1, "name": " "}]}, "class 0 has the name ' '"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "two categories with the name 'a'"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "two categories with the id 1"),
        ({"categories": [{"id": 1, "name": "a"}]}, "annotation 1 has the category_id 30"),
        ({"categories": [{"id": 1}]}, "lacks a key"),
        ({"annotations": {}}, "has no list 'annotations'"),
        ({"annotations": [{"id": 1}]}, "lacks a key"),
        ({"annotations": []}, "holds no annotations"),
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1, "file_name": "none.jpg"}]}, "image none.jpg of .* is not in"),
    ],
)
def test_bad_json(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        register_custom_data(config(), arguments(tmp_path, train_json=str(path), train_images=str(tmp_path)))


def test_bad_options(tmp_path: Path) -> None:
    path, folder = str(write(tmp_path)), str(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    for given, message in (
        ({"train_json": path}, "--train-json needs --train-images"),
        ({"test_images": folder}, "--test-images needs --test-json"),
        ({"test_json": path, "test_images": folder}, "add --train-json, or --eval-only"),
        ({"eval_only": True}, "no custom data given"),
        ({"train_json": path + "x", "train_images": folder}, "no annotations .*x; expected a COCO json"),
        ({"train_json": path, "train_images": folder + "/none"}, "no folder of images"),
        ({"train_json": folder + "/bad.json", "train_images": folder}, "is not valid JSON"),
    ):
        with pytest.raises(InputError, match=message):
            register_custom_data(config(), arguments(tmp_path, **given))
