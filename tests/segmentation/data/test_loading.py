"""Loaders of training and test batches, and what becomes of files that cannot be used."""

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation  # noqa: F401
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.errors import InputError
from segmentation.data import build_test_loader, build_train_loader, get_records, sample_per_class
from segmentation.data.datasets import load_binary_mask, load_sem_seg
from tests.segmentation_recipes import segmentation_config

SIZES = [(20, 30), (30, 20), (24, 24)]  # height, width
CLASSES = ["a", "b", "c"]


@pytest.fixture
def folders(tmp_path):
    """Images whose upper half has the class of their number, the lower half the next one; the border is ignored."""
    for number, (height, width) in enumerate(SIZES):
        labels = np.full((height, width), 255, np.uint8)
        labels[2 : height // 2, 2:-2] = number % 3
        labels[height // 2 : -2, 2:-2] = (number + 1) % 3
        pixels = np.random.RandomState(number).randint(0, 256, (height, width, 3)).astype(np.uint8)
        for folder, image in (("images", pixels), ("labels", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / folder / f"{number}.png")
    counts = {f"{number}.png": sorted({number % 3, (number + 1) % 3}) for number in range(len(SIZES))}
    (tmp_path / "labels_label_count.json").write_text(json.dumps(counts))
    arguments = str(tmp_path / "labels"), str(tmp_path / "images"), "png", "png"
    names = {"made_up_maps": load_sem_seg, "made_up_masks": load_binary_mask, "made_up_others": load_sem_seg}
    for name, load in names.items():
        DatasetCatalog.register(name, lambda load=load: load(*arguments))
        classes = ["x"] * 3 if name == "made_up_others" else CLASSES
        MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255, evaluator_type="sem_seg")
    yield tmp_path
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(name="made_up_maps", **values):
    cfg = segmentation_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = 2, 3
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.SIZE_DIVISIBILITY = (16, 20), 10, 32
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", (16, 16)
    if name == "made_up_masks":
        cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_binary_semantic"
    cfg.merge_from_list([part for item in values.items() for part in item])
    return cfg


def batches(loader, count):
    return list(itertools.islice(loader, count))


def test_training_batches_of_semantic_segmentation(folders):
    found = [sample for batch in batches(build_train_loader(config()), 6) for sample in batch]
    assert len(found) == 12
    for sample in found:
        assert sample["meta"] == {"dataset_name": "made_up_maps"}
        assert sample["image"].shape == (3, 32, 32) and sample["image"].dtype == torch.uint8
        assert sample["instances"].gt_classes.tolist() == [
            label for label in sample["sem_seg"].unique().tolist() if label != 255
        ]
        assert torch.equal(sample["instances"].gt_masks.any(0), sample["sem_seg"] != 255)
        assert (sample["sem_seg"][17:] == 255).all() and (sample["image"][:, 17:] == 128).all()
        assert "sem_seg_file_name" not in sample
    # Fixed-size samples are not grouped by shape, so that a resumed training need not open images to find its place.
    assert any(
        len({s["height"] < s["width"] for s in batch}) == 2 for batch in batches(build_train_loader(config()), 6)
    )


def test_training_batches_of_mask_classification(folders):
    cfg = config("made_up_masks", **{"INPUT.MIN_SIZE_TRAIN": (8, 12)})
    for batch in batches(build_train_loader(cfg), 4):
        for sample in batch:
            assert sample["image"].shape == (3, 12, 8)
            assert sample["instances"].gt_classes.tolist() == [sample["category_id"]]
            assert torch.equal(sample["instances"].gt_masks[0], sample["sem_seg"] == sample["category_id"])
            assert sample["instances"].gt_masks.any()


def test_workers_change_nothing(folders):
    plain, parallel = (
        batches(build_train_loader(config(**{"DATALOADER.NUM_WORKERS": number})), 2) for number in (0, 1)
    )
    for left, right in zip(plain, parallel, strict=True):
        for a, b in zip(left, right, strict=True):
            assert torch.equal(a["image"], b["image"]) and torch.equal(a["sem_seg"], b["sem_seg"])


def test_test_batches_come_in_order_without_labels(folders):
    loader = build_test_loader(config(**{"SOLVER.TEST_IMS_PER_BATCH": 2}), "made_up_maps")
    found = list(loader)
    assert [len(batch) for batch in found] == [2, 1]
    samples = [sample for batch in found for sample in batch]
    assert [(s["height"], s["width"]) for s in samples] == SIZES
    assert [tuple(s["image"].shape[1:]) for s in samples] == [(10, 15), (15, 10), (10, 10)]
    for sample in samples:
        assert sample["meta"] == {"dataset_name": "made_up_maps"}
        assert not {"sem_seg", "instances", "sem_seg_file_name"} & sample.keys()


def test_oracle_reads_labels(folders):
    (sample, *_), *_ = build_test_loader(config(ORACLE=True), "made_up_maps")
    assert sample["instances"].gt_classes.tolist() == [0, 1]
    assert sample["instances"].gt_masks.shape == (2, 10, 15)
    (sample, *_), *_ = build_test_loader(config("made_up_masks", ORACLE=True), "made_up_masks")
    assert sample["image"].shape == (3, 10, 10) and sample["instances"].gt_masks.shape == (1, 10, 10)
    (sample, *_), *_ = build_test_loader(config(ORACLE=True, **{"INPUT.DATASET_MAPPER_NAME": "x"}), "made_up_maps")
    assert sample["sem_seg"].shape == (10, 15) and "instances" not in sample


def test_the_mapper_knows_the_classes_of_its_own_test_set(folders):
    cfg = config(ORACLE=True, **{"DATASETS.TEST": ("voc_novel_sem_seg_test",)})
    assert len(list(build_test_loader(cfg, "made_up_maps"))) == 3
    MetadataCatalog.remove("made_up_others")
    MetadataCatalog.get("made_up_others").set(stuff_classes=["x"], ignore_label=255)
    with pytest.raises(InputError, match="holds 1, expected the labels 0 to 0 of the 1 classes"):
        list(build_test_loader(cfg, "made_up_others"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"DATASETS.TRAIN": ()}, "no data set is named: set DATASETS.TRAIN"),
        ({"DATASETS.TRAIN": ("nowhere",)}, "data set 'nowhere' of DATASETS.TRAIN or DATASETS.TEST is not registered"),
        (
            {"DATASETS.TRAIN": ("made_up_maps", "made_up_others")},
            "made_up_maps and made_up_others .* different classes",
        ),
        ({"INPUT.DATASET_MAPPER_NAME": "mask_former_binary_semantic"}, "needs one record per class of an image"),
        ({"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler"}, "expected TrainingSampler"),
        ({"SOLVER.IMS_PER_BATCH": 0}, "SOLVER.IMS_PER_BATCH is 0"),
        ({"INPUT.CROP.SIZE": (40, 16)}, r"INPUT.CROP.SIZE is \(40, 16\), larger than the 32 pixels"),
    ],
)
def test_training_settings_that_cannot_be_used(folders, values, message):
    with pytest.raises(InputError, match=message):
        build_train_loader(config(**values))


def test_test_settings_that_cannot_be_used(folders):
    with pytest.raises(InputError, match="TEST_IMS_PER_BATCH is 0"):
        build_test_loader(config(**{"SOLVER.TEST_IMS_PER_BATCH": 0}), "made_up_maps")
    with pytest.raises(InputError, match="'nowhere' .* is not registered"):
        build_test_loader(config(), "nowhere")
    cfg = config(ORACLE=True, **{"INPUT.DATASET_MAPPER_NAME": "mask_former_binary_semantic"})
    with pytest.raises(InputError, match="needs one record per class"):
        build_test_loader(cfg, "made_up_maps")
    with pytest.raises(InputError, match="MIN_SIZE_TRAIN is .* takes two numbers"):
        build_train_loader(config("made_up_masks", **{"INPUT.MIN_SIZE_TRAIN": (16, 20, 24)}))


def test_records_with_a_meta_of_their_own_are_refused(folders):
    DatasetCatalog.register("made_up_meta", lambda: [{"file_name": "x", "meta": {}}])
    with pytest.raises(AssertionError, match="has a 'meta' already"):
        get_records("made_up_meta")
    DatasetCatalog.remove("made_up_meta")
    DatasetCatalog.register("made_up_empty", list)
    with pytest.raises(InputError, match="'made_up_empty' .* cannot be used"):
        get_records("made_up_empty")
    DatasetCatalog.remove("made_up_empty")


def write_label(folder, number, value):
    path = folder / f"labels/{number}.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[3, 3] = value
    Image.fromarray(labels).save(path)
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_labels_end_the_training_in_one_line(folders, workers):
    paths = [write_label(folders, number, 200) for number in range(3)]
    with pytest.raises(InputError) as error:
        batches(build_train_loader(config(**{"DATALOADER.NUM_WORKERS": workers})), 1)
    (line,) = str(error.value).splitlines()
    assert any(
        line.startswith(f"label map {path} holds 200, expected the labels 0 to 2 of the 3 classes") for path in paths
    )


def test_sizes_that_differ_are_an_error(folders):
    for number in range(3):
        Image.new("L", (5, 4)).save(folders / f"labels/{number}.png")
    with pytest.raises(InputError, match="is 5x4 .* its image .* make them equal"):
        batches(build_train_loader(config()), 1)


def test_missing_files_are_an_error(folders):
    loader = build_train_loader(config())
    for number in range(3):
        (folders / f"images/{number}.png").unlink()
    with pytest.raises(InputError, match="images/[012].png does not exist; check the image folder"):
        batches(loader, 1)


def test_broken_files_are_left_out_of_training_and_an_error_of_evaluation(folders, caplog):
    path = folders / "images/1.png"
    path.write_bytes(path.read_bytes()[:60])
    found = [sample for batch in batches(build_train_loader(config()), 6) for sample in batch]
    assert {s["file_name"] for s in found} == {str(folders / f"images/{number}.png") for number in (0, 2)}
    assert f"{path} cannot be read" in caplog.text
    for workers in (0, 1):
        with pytest.raises(InputError, match=f"^{path} cannot be read .*; fetch it again or drop it$"):
            list(build_test_loader(config(**{"DATALOADER.NUM_WORKERS": workers}), "made_up_maps"))


def test_missing_files_of_a_test_set_are_an_error(folders):
    loader = build_test_loader(config(), "made_up_maps")
    (folders / "images/0.png").unlink()
    with pytest.raises(InputError, match="images/0.png does not exist; check the folders"):
        list(loader)


def test_resumed_batches_are_those_of_an_uninterrupted_training(folders):
    loader = build_train_loader(config())
    first, rest = build_train_loader(config()), build_train_loader(config())
    batches(first, 2)
    rest.load_state_dict(first.state_dict())
    for expected, found in zip(batches(loader, 5)[2:], batches(rest, 3), strict=True):
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a["image"], b["image"]) and torch.equal(a["sem_seg"], b["sem_seg"])


def test_crops_that_lost_their_class_are_replaced_without_a_word(folders, caplog):
    cfg = config("made_up_masks", **{"INPUT.MIN_SIZE_TRAIN": (8, 8), "MODEL.CLIP_ADAPTER.MASK_EXPAND_RATIO": 30.0})
    for number, (height, width) in enumerate(SIZES):
        labels = np.zeros((height, width), np.uint8)
        labels[0, 0] = 1
        Image.fromarray(labels).save(folders / f"labels/{number}.png")
    (folders / "labels_label_count.json").write_text(json.dumps({f"{number}.png": [0, 1] for number in range(3)}))
    for batch in batches(build_train_loader(cfg), 5):
        assert all(sample["instances"].gt_masks.any() for sample in batch)
    assert "left out" not in caplog.text


def test_counts_that_are_out_of_date(folders):
    (folders / "labels_label_count.json").write_text('{"0.png": [2]}')
    with pytest.raises(InputError, match="0.png has no pixel of class 2.*prepare_label_count.py"):
        batches(build_train_loader(config("made_up_masks", **{"INPUT.MIN_SIZE_TRAIN": (8, 8)})), 1)


def records_of(*counts):
    rows = [{"category_id": label, "number": number} for label, count in counts for number in range(count)]
    random.Random(0).shuffle(rows)
    return rows


def test_sampling_keeps_small_classes_and_draws_from_large_ones():
    records = records_of((0, 50), (1, 3), (2, 10))
    found = sample_per_class(records, 10, seed=0)
    assert Counter(row["category_id"] for row in found) == {0: 10, 1: 3, 2: 10}
    order = list(dict.fromkeys(row["category_id"] for row in records))
    assert list(dict.fromkeys(row["category_id"] for row in found)) == order
    assert found == sample_per_class(records, 10, seed=0) != sample_per_class(records, 10, seed=1)
    # With replacement, as published: a class of exactly that many loses some.
    assert len({row["number"] for row in found if row["category_id"] == 2}) < 10
    assert sample_per_class(records, -1, seed=0) == records


def test_sampling_is_that_of_numpy():
    records = records_of((4, 30))
    drawn = np.random.default_rng(7).choice(np.array(records, dtype=object), size=5)
    assert sample_per_class(records, 5, seed=7) == list(drawn)
