"""Training and evaluation data from folders of images and of label maps."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segmentation  # noqa: F401  makes a detectron2 importable
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.errors import InputError
from segmentation.config import add_config
from segmentation.custom_data import TEST_NAME, TRAIN_NAME, is_asked_for, register_custom_data
from segmentation.task import add_arguments

NAMES = ("red car", "road", "sky")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for name in {TRAIN_NAME, TEST_NAME} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for number in range(3):
        labels = np.full((4, 6), number, np.uint8)
        labels[0] = 255
        Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(
            tmp_path / "images" / f"{number}.{'jpg' if number else 'PNG'}"
        )
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    return tmp_path


def config(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ZeroShotMaskFormer"
    cfg.merge_from_list([each for pair in keys.items() for each in (pair[0].replace("__", "."), pair[1])])
    return cfg


def arguments(*words: str, **more: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train-images")  # as of detection
    add_arguments(parser)
    return argparse.Namespace(**{"eval_only": False, "opts": []} | vars(parser.parse_args(words)) | more)


def training(folder: Path, *more: str, **options: Any) -> argparse.Namespace:
    words = ["--train-images", str(folder / "images"), "--train-labels", str(folder / "labels")]
    return arguments(*words, "--classes", str(folder / "classes.txt"), *more, **options)


def for_tests(folder: Path) -> list[str]:
    return ["--test-images", str(folder / "images"), "--test-labels", str(folder / "labels")]


def test_folders_become_data_sets(folder: Path) -> None:
    cfg = config()
    args = training(folder, *for_tests(folder))
    assert is_asked_for(args) and not is_asked_for(arguments())
    register_custom_data(cfg, args)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((TRAIN_NAME,), (TEST_NAME,))
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE) == (3, 255)
    records = DatasetCatalog.get(TRAIN_NAME)
    assert [Path(record["file_name"]).name for record in records] == ["0.PNG", "1.jpg", "2.jpg"]
    assert records[2]["sem_seg_file_name"].endswith("2.png")
    metadata = MetadataCatalog.get(TEST_NAME)
    assert (metadata.stuff_classes, metadata.ignore_label, metadata.evaluator_type) == (list(NAMES), 255, "sem_seg")
    assert metadata.trainable_flag == [1, 1, 1] and not hasattr(metadata, "evaluation_set")


def test_new_test_classes_are_unseen(folder: Path) -> None:
    (folder / "test.txt").write_text("sky\nroad\ndog\n")
    register_custom_data(config(), training(folder, *for_tests(folder), "--test-classes", str(folder / "test.txt")))
    metadata = MetadataCatalog.get(TEST_NAME)
    assert metadata.trainable_flag == [1, 1, 0] and metadata.evaluation_set == {"base": [0, 1]}
    with pytest.raises(InputError, match="the classifier of MaskFormer is a learned one"):
        register_custom_data(
            config(MODEL__META_ARCHITECTURE="MaskFormer"),
            training(folder, *for_tests(folder), "--test-classes", str(folder / "test.txt")),
        )


def test_evaluation_alone_needs_no_training_data(folder: Path) -> None:
    cfg = config()
    args = arguments(*for_tests(folder), "--classes", str(folder / "classes.txt"), eval_only=True)
    register_custom_data(cfg, args)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((), (TEST_NAME,))


def test_mask_classification_has_a_record_per_class(folder: Path) -> None:
    register_custom_data(config(INPUT__DATASET_MAPPER_NAME="mask_former_binary_semantic"), training(folder))
    assert [record["category_id"] for record in DatasetCatalog.get(TRAIN_NAME)] == [0, 1, 2]
    assert MetadataCatalog.get(TRAIN_NAME).evaluator_type == "classification"


def test_what_was_typed_stays(folder: Path) -> None:
    cfg = config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=7)
    register_custom_data(cfg, training(folder, opts=["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"]))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 7  # and fails later, in the comparison with the data


def test_many_classes_take_16_bits(folder: Path) -> None:
    (folder / "classes.txt").write_text("\n".join(f"class {number}" for number in range(300)))
    for number in range(3):
        labels = np.full((4, 6), 299, np.uint16)
        labels[0] = 65535
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
    cfg = config()
    register_custom_data(cfg, training(folder))
    assert cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE == MetadataCatalog.get(TRAIN_NAME).ignore_label == 65535


def test_bad_options(folder: Path) -> None:
    classes = ("--classes", str(folder / "classes.txt"))
    images = ("--train-images", str(folder / "images"))
    for words, options, message in (
        ((*images, *classes), {}, "--train-images needs --train-labels"),
        (("--test-labels", "x", *classes), {}, "--test-labels needs --test-images"),
        ((*images, "--train-labels", str(folder / "labels")), {}, "custom data need --classes"),
        (for_tests(folder), {"eval_only": True}, "custom data need --classes"),
        ((*for_tests(folder), *classes), {}, "add --train-images, or --eval-only"),
        (classes, {"eval_only": True}, "no custom data given"),
        ((*classes, "--test-classes", "x"), {}, "--test-classes needs --test-images"),
        ((*images, "--train-labels", str(folder / "none"), *classes), {}, "no folder .*none of label maps"),
        ((*images, "--train-labels", str(folder / "labels"), "--classes", "none.txt"), {}, "none.txt: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            register_custom_data(config(), arguments(*words, **options))


def test_bad_label_maps_and_names(folder: Path) -> None:
    (folder / "classes.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="2.png holds 2, but there are 2 classes, 0 to 1, and 255 for no class"):
        register_custom_data(config(), training(folder))
    (folder / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(InputError, match="has the class 'a' twice"):
        register_custom_data(config(), training(folder))
    (folder / "classes.txt").write_text("\n".join(NAMES))
    for number in range(3):
        Image.fromarray(np.full((4, 6), 255, np.uint8)).save(folder / "labels" / f"{number}.png")
    with pytest.raises(InputError, match="no class in any of the label maps looked at"):
        register_custom_data(config(), training(folder))
