"""From MODEL.CLASS_EMBEDDINGS to the published keys, and the check of the four numbers of classes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detection.class_counts import check_class_counts
from detection.class_embedding_hook import resolve_class_embeddings_of
from detection.task import add_config
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError
from tests.detection.tiny_runs import WIDTH, write_embeddings

SETS = {"hook_three": ("red star", "green disc", "blue square"), "hook_two": ("red star", "sand"), "hook_one": ("a",)}


@pytest.fixture(autouse=True)
def data_sets() -> Iterator[None]:
    for name, classes in SETS.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(thing_classes=list(classes))
    yield
    for name in SETS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(folder: Path, **keys: object) -> CfgNode:
    cfg = get_cfg()
    add_config(cfg)
    start = {
        "MODEL.META_ARCHITECTURE": "CustomRCNN",
        "MODEL.DEVICE": "cpu",
        "OUTPUT_DIR": str(folder),
        "MODEL.CLASS_EMBEDDINGS.CLIP": "shapeworld-tiny",
        "MODEL.CLASS_EMBEDDINGS.CACHE_DIR": str(folder / "cache"),
        "DATASETS.TRAIN": ("hook_three",),
        "DATASETS.TEST": ("hook_two",),
    }
    for key, value in (start | {key.replace("__", "."): value for key, value in keys.items()}).items():
        cfg.merge_from_list([key, value])
    return cfg


def with_rows(folder: Path, rows: int, **keys: object) -> CfgNode:
    """A zero-shot head of three classes with ``rows`` embeddings."""
    path = write_embeddings(folder / f"{rows}.npy", rows)
    head = {"ZEROSHOT_WEIGHT_PATH": str(path), "ZEROSHOT_WEIGHT_DIM": WIDTH, "USE_ZEROSHOT_CLS": True}
    start = {f"MODEL__ROI_BOX_HEAD__{key}": value for key, value in head.items()}
    return config(folder, **(start | {"MODEL__ROI_HEADS__NUM_CLASSES": 3} | keys))


def test_prompt_and_vocabulary_make_the_head(tmp_path: Path) -> None:
    cfg = config(
        tmp_path,
        MODEL__CLASS_EMBEDDINGS__PROMPT="a photo of a {}.",
        MODEL__CLASS_EMBEDDINGS__VOCABULARY="red star,sand",
    )
    resolve_class_embeddings_of(cfg)
    head = cfg.MODEL.ROI_BOX_HEAD
    found = ClassEmbeddings.load(head.ZEROSHOT_WEIGHT_PATH)
    assert found.class_names == ("red star", "sand")
    assert (len(found), found.width) == (cfg.MODEL.ROI_HEADS.NUM_CLASSES, head.ZEROSHOT_WEIGHT_DIM)
    assert head.USE_ZEROSHOT_CLS
    assert Path(head.ZEROSHOT_WEIGHT_PATH).is_relative_to(tmp_path / "class_embeddings")


def test_prompt_alone_takes_the_classes_of_the_training_set_and_of_each_test_set(tmp_path: Path) -> None:
    cfg = config(
        tmp_path,
        MODEL__CLASS_EMBEDDINGS__PROMPT="a photo of a {}.",
        MODEL__RESET_CLS_TESTS=True,
        DATASETS__TEST=("hook_two", "hook_three"),
    )
    resolve_class_embeddings_of(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert list(cfg.MODEL.TEST_NUM_CLASSES) == [2, 3]
    two, three = (ClassEmbeddings.load(path) for path in cfg.MODEL.TEST_CLASSIFIERS)
    assert (two.class_names, three.class_names) == (SETS["hook_two"], SETS["hook_three"])
    head = ClassEmbeddings.load(cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH)
    assert torch.equal(head.embeddings, three.embeddings)
    check_class_counts(cfg)


def test_test_classifiers_may_be_files_and_vocabularies(tmp_path: Path) -> None:
    cfg = config(
        tmp_path,
        MODEL__CLASS_EMBEDDINGS__PROMPT="a photo of a {}.",
        MODEL__RESET_CLS_TESTS=True,
        MODEL__TEST_CLASSIFIERS=["red star,desert sand"],
    )
    resolve_class_embeddings_of(cfg)
    assert ClassEmbeddings.load(cfg.MODEL.TEST_CLASSIFIERS[0]).class_names == ("red star", "desert sand")
    rows = write_embeddings(tmp_path / "two.npy", 2)
    cfg = with_rows(tmp_path, 3, MODEL__RESET_CLS_TESTS=True, MODEL__TEST_CLASSIFIERS=[str(rows)])
    resolve_class_embeddings_of(cfg)
    assert ([str(rows)], [2]) == (cfg.MODEL.TEST_CLASSIFIERS, cfg.MODEL.TEST_NUM_CLASSES)


def test_nothing_set_changes_nothing(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    before = cfg.dump()
    resolve_class_embeddings_of(cfg)
    assert cfg.dump() == before


def expect(message: str, cfg: CfgNode) -> None:
    with pytest.raises(InputError, match=message):
        resolve_class_embeddings_of(cfg)


def test_what_cannot_be_resolved_is_an_error(tmp_path: Path) -> None:
    tests = {"MODEL__RESET_CLS_TESTS": True}
    rows = str(write_embeddings(tmp_path / "rows.npy", 3))
    expect(
        "needs one of MODEL.TEST_CLASSIFIERS for each of the 1 data sets of DATASETS.TEST, found 0",
        config(tmp_path, **tests),
    )
    expect(
        "classes of hook_two disagree: class embeddings 3 .*, data set 2, MODEL.TEST_NUM_CLASSES 3",
        with_rows(tmp_path, 3, **tests, MODEL__TEST_CLASSIFIERS=[rows]),
    )
    expect(
        "disagree: class embeddings 3 .* MODEL.TEST_NUM_CLASSES 2",
        with_rows(tmp_path, 3, **tests, MODEL__TEST_CLASSIFIERS=[rows], MODEL__TEST_NUM_CLASSES=[2]),
    )
    expect(
        "no class embeddings 'a_pomp.npy' .MODEL.TEST_CLASSIFIERS.; the published files come with the release of POMP",
        with_rows(tmp_path, 3, **tests, MODEL__TEST_CLASSIFIERS=["a_pomp.npy"]),
    )
    expect(
        "no class embeddings 'x.npy' .MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH.; .* release of Detic",
        with_rows(tmp_path, 3, MODEL__ROI_BOX_HEAD__ZEROSHOT_WEIGHT_PATH="x.npy"),
    )
    expect("MODEL.TRAIN_CLASSIFIERS", with_rows(tmp_path, 3, MODEL__RESET_CLS_TRAIN=True))
    prompt = {"MODEL__CLASS_EMBEDDINGS__PROMPT": "a photo of a {}."}
    expect(
        "the classifier of DeformableDetr is a learned one",
        config(tmp_path, **prompt, MODEL__META_ARCHITECTURE="DeformableDetr"),
    )
    expect("a PROMPT but no vocabulary", config(tmp_path, **prompt, DATASETS__TRAIN=(), DATASETS__TEST=()))


def checked(cfg: CfgNode, weights: str = "", eval_only: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        check_class_counts(cfg, weights=weights, eval_only=eval_only)
    return str(caught.value)


def test_counts_that_disagree_are_an_error_with_all_four(tmp_path: Path) -> None:
    weights = tmp_path / "five.pth"
    stored = {"roi_heads.box_predictor.0.cls_score.zs_weight": torch.zeros(WIDTH, 6)}
    torch.save({"model": stored}, weights)
    text = checked(with_rows(tmp_path, 4), str(weights))
    assert text.startswith("numbers of classes disagree: head 3 (MODEL.ROI_HEADS.NUM_CLASSES), class embeddings 4 (")
    assert f"data set 3 in hook_three, checkpoint 5 ({weights}); give the file of these classes" in text

    text = checked(with_rows(tmp_path, 3, DATASETS__TRAIN=("hook_two",)))
    assert "head 3 " in text and "class embeddings 3 (" in text and "data set 2 in hook_two, checkpoint unknown" in text
    assert checked(with_rows(tmp_path, 3), eval_only=True).endswith("set MODEL.RESET_CLS_TESTS True for hook_two")


def test_learned_classifier_needs_weights_of_its_classes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    cfg = config(tmp_path, MODEL__ROI_HEADS__NUM_CLASSES=3)
    check_class_counts(cfg)
    stored = {"roi_heads.box_predictor.2.cls_score.weight": torch.zeros(81, 4)}
    save_file(stored, tmp_path / "learned.safetensors")
    text = checked(cfg, str(tmp_path / "learned.safetensors"))
    assert "class embeddings none (a learned classifier)" in text and "checkpoint 80" in text
    assert text.endswith("give weights of these classes")


def test_other_frozen_embeddings_in_weights_are_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "five.pth"
    torch.save({"roi_heads.box_predictor.cls_score.zs_weight": torch.zeros(WIDTH, 6)}, weights)
    with caplog.at_level(logging.WARNING):
        check_class_counts(with_rows(tmp_path, 3), weights=str(weights))
    assert "the 5 class embeddings in" in caplog.text
    torch.save({"roi_heads.box_predictor.0.cls_score.linear.weight": torch.zeros(512, 4)}, weights)
    assert "embeddings of width 512, but" in checked(with_rows(tmp_path, 3), str(weights))


def test_data_set_may_have_the_first_classes_of_a_larger_vocabulary(tmp_path: Path) -> None:
    MetadataCatalog.remove("hook_two")
    MetadataCatalog.get("hook_two").set(thing_classes=["red star", "green disc"])
    cfg = with_rows(tmp_path, 3, DATASETS__TRAIN=("hook_two", "hook_three"))
    check_class_counts(cfg)
    check_class_counts(cfg, eval_only=True)
    assert "hook_one" in checked(with_rows(tmp_path, 3, DATASETS__TRAIN=("hook_one", "hook_three")))


def test_other_names_in_the_same_place_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(
        tmp_path,
        MODEL__CLASS_EMBEDDINGS__PROMPT="a photo of a {}.",
        MODEL__CLASS_EMBEDDINGS__VOCABULARY="Red_star,blue square,green disc",
    )
    resolve_class_embeddings_of(cfg)
    with caplog.at_level(logging.WARNING):
        check_class_counts(cfg)
    assert "class 1 is 'green disc' in hook_three but 'blue square' in" in caplog.text


def test_captions_of_another_clip_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_embeddings(tmp_path / "coco_clip_pomp+cname.npy", 3)
    cfg = with_rows(tmp_path, 3, MODEL__ROI_BOX_HEAD__ZEROSHOT_WEIGHT_PATH=str(path), MODEL__WITH_CAPTION=True)
    with caplog.at_level(logging.WARNING):
        check_class_counts(cfg)
    assert "captions are encoded by ViT-B/32" in caplog.text
