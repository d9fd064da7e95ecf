"""From a config to batches."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import detection  # noqa: F401  (makes detectron2 importable)
from centernet.config import add_centernet_config
from centernet.data import ClassAwareSampler
from detection.config import add_detic_config
from detection.data import (
    build_custom_train_loader,
    build_train_loader,
    get_detection_dataset_dicts_with_source,
)
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from prompt_pretrain import distributed
from prompt_pretrain.errors import InputError

CLASSES = 4  # of the data sets that ``two_sets`` registers


def settings(**values: Any) -> CfgNode:
    cfg = get_cfg()
    add_centernet_config(cfg)
    add_detic_config(cfg)
    values = {
        "SEED": 7,
        "WITH_IMAGE_LABELS": True,
        "MODEL__META_ARCHITECTURE": "CustomRCNN",
        "MODEL__ROI_HEADS__NUM_CLASSES": CLASSES,
        "DATASETS__TRAIN": ("test_boxes", "test_labels"),
        "INPUT__CUSTOM_AUG": "EfficientDetResizeCrop",
        "DATALOADER__NUM_WORKERS": 0,
        "DATALOADER__SAMPLER_TRAIN": "MultiDatasetSampler",
        "DATALOADER__DATASET_RATIO": [1, 4],
        "DATALOADER__USE_RFS": [True, False],
        "DATALOADER__DATASET_ANN": ["box", "image"],
        "DATALOADER__DATASET_BS": [2, 8],
        "DATALOADER__DATASET_INPUT_SIZE": [32, 16],
        "DATALOADER__MULTI_DATASET_GROUPING": True,
        "DATALOADER__USE_DIFF_BS_SIZE": True,
        "DATALOADER__FILTER_EMPTY_ANNOTATIONS": False,
    } | values
    cfg.merge_from_list([part for name, value in values.items() for part in (name.replace("__", "."), value)])
    return cfg


BOXES_ONLY = {
    "WITH_IMAGE_LABELS": False,
    "DATASETS__TRAIN": ("test_boxes",),
    "DATALOADER__MULTI_DATASET_GROUPING": False,
    "DATALOADER__USE_DIFF_BS_SIZE": False,
    "DATALOADER__SAMPLER_TRAIN": "TrainingSampler",
    "DATALOADER__ASPECT_RATIO_GROUPING": False,
    "SOLVER__IMS_PER_BATCH": 3,
}


def take(loader: Any, count: int) -> list[Any]:
    return list(itertools.islice(loader, count))


def digest(batches: list[list[dict[str, Any]]]) -> list[Any]:
    """What a model sees of them, comparably."""
    return [
        [
            (sample["file_name"], sample.get("ann_type"), tuple(sample["image"].shape), sample["image"].sum().item())
            + tuple(sample["instances"].gt_boxes.tensor.flatten().tolist())
            for sample in batch
        ]
        for batch in batches
    ]


def test_a_ratio_of_batch_sizes_gives_as_many_iterations_of_each_kind(two_sets: Path) -> None:
    batches = take(build_train_loader(settings()), 60)
    kinds = [{sample["ann_type"] for sample in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    count = Counter(kind.pop() for kind in kinds)
    assert 20 <= count["box"] <= 40
    for batch in batches:
        boxes = batch[0]["ann_type"] == "box"
        assert len(batch) == (2 if boxes else 8)
        assert all(max(sample["image"].shape[1:]) <= (32 if boxes else 16) for sample in batch)
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_training_sees_the_same_images(two_sets: Path, num_workers: int) -> None:
    whole = digest(take(build_train_loader(settings()), 12))
    loader = build_train_loader(settings(DATALOADER__NUM_WORKERS=num_workers))
    first = digest(take(loader, 5))
    state = torch.load(_saved(two_sets, loader.state_dict()), weights_only=True)
    resumed = build_train_loader(settings(SEED=-1, DATALOADER__NUM_WORKERS=num_workers))
    resumed.load_state_dict(state)
    assert first + digest(take(resumed, 7)) == whole


def _saved(folder: Path, state: dict[str, Any]) -> Path:
    torch.save(state, folder / "state.pth")
    return folder / "state.pth"


def test_box_training_goes_as_with_detectron2(two_sets: Path) -> None:
    loader = build_train_loader(settings(**BOXES_ONLY))
    files = [Path(sample["file_name"]).name for batch in take(loader, 4) for sample in batch]
    order = itertools.islice(TrainingSampler(6, seed=7), 12)
    assert files == [f"test_boxes_{index}.png" for index in order]


def test_repeat_factors_of_detectron2(two_sets: Path) -> None:
    rare = {"DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER__REPEAT_THRESHOLD": 0.9}
    loader = build_train_loader(settings(**(BOXES_ONLY | rare)))
    files = [Path(sample["file_name"]).name for batch in take(loader, 4) for sample in batch]
    records = get_detection_dataset_dicts_with_source("test_boxes", filter_empty=False)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.9)
    order = itertools.islice(RepeatFactorTrainingSampler(factors, seed=7), 12)
    assert files == [f"test_boxes_{index}.png" for index in order]


def test_class_aware_sampling_of_centernet(two_sets: Path) -> None:
    loader = build_train_loader(settings(**(BOXES_ONLY | {"DATALOADER__SAMPLER_TRAIN": "ClassAwareSampler"})))
    files = [Path(sample["file_name"]).name for batch in take(loader, 4) for sample in batch]
    sampler = ClassAwareSampler(get_detection_dataset_dicts_with_source("test_boxes", filter_empty=False), seed=7)
    assert files == [f"test_boxes_{index}.png" for index in itertools.islice(sampler, 12)]


def test_a_random_subset(two_sets: Path) -> None:
    cfg = settings(**(BOXES_ONLY | {"DATALOADER__SAMPLER_TRAIN": "RandomSubsetTrainingSampler"}))
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    files = {sample["file_name"] for batch in take(build_train_loader(cfg), 10) for sample in batch}
    assert len(files) == 3


def test_aspect_ratio_grouping(two_sets: Path) -> None:
    loader = build_train_loader(settings(**(BOXES_ONLY | {"DATALOADER__ASPECT_RATIO_GROUPING": True})))
    for batch in take(loader, 6):
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1 and len(batch) == 3


def test_records_know_their_data_set_and_empty_ones_can_be_left_out(two_sets: Path) -> None:
    both = get_detection_dataset_dicts_with_source(("test_boxes", "test_labels"), filter_empty=False)
    assert [record["dataset_source"] for record in both] == [0] * 6 + [1] * 9
    assert len(get_detection_dataset_dicts_with_source("test_boxes")) == 5
    twice = get_detection_dataset_dicts_with_source(("test_boxes", "test_boxes"))
    assert [record["dataset_source"] for record in twice] == [0] * 5 + [1] * 5


def test_own_records_mapper_and_sampler(two_sets: Path) -> None:
    records = [{"width": 2, "height": 1, "dataset_source": 0, "number": number} for number in range(4)]
    order = torch.utils.data.SequentialSampler(records)
    cfg = settings(**(BOXES_ONLY | {"SOLVER__IMS_PER_BATCH": 2}))
    loader = build_custom_train_loader(cfg, mapper=lambda record: record["number"], dataset=records, sampler=order)
    assert list(loader) == [[0, 1], [2, 3]]
    loader = build_custom_train_loader(records, mapper=None, total_batch_size=1, aspect_ratio_grouping=True)
    assert {record["number"] for (record,) in take(loader, 4)} == {0, 1, 2, 3}


def test_each_process_gets_its_share(two_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    cfg = settings(**(BOXES_ONLY | {"SOLVER__IMS_PER_BATCH": 6}))
    assert [len(batch) for batch in take(build_train_loader(cfg), 3)] == [2, 2, 2]
    cfg.SOLVER.IMS_PER_BATCH = 4
    with pytest.raises(InputError, match="SOLVER.IMS_PER_BATCH is 4; it must be positive and a multiple of.* 3"):
        build_train_loader(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DATASETS__TRAIN": ()}, "no data set is named: set DATASETS.TRAIN"),
        ({"DATASETS__TRAIN": ("test_boxes", "nowhere")}, "data set 'nowhere' of DATASETS.TRAIN is not registered"),
        ({"DATALOADER__FILTER_EMPTY_ANNOTATIONS": True}, "none of the 9 images of 'test_labels' has an annotation"),
        (
            {"DATALOADER__MULTI_DATASET_GROUPING": False},
            "MULTI_DATASET_GROUPING is False, but the 2 training sets have",
        ),
        (
            {"DATALOADER__MULTI_DATASET_GROUPING": False, "DATALOADER__USE_DIFF_BS_SIZE": False},
            "the 2 training sets differ in their annotations; set it to True",
        ),
        ({"DATALOADER__DATASET_BS": [2]}, "DATALOADER.DATASET_BS has 1 entries for 2 training sets"),
        ({"DATALOADER__DATASET_BS": [2, 0]}, r"batch sizes are \[2, 2, 0, 0\], expected 1 or more"),
        ({"DATALOADER__SAMPLER_TRAIN": "Sampler"}, "DATALOADER.SAMPLER_TRAIN is 'Sampler', expected TrainingSampler"),
        ({"DATALOADER__SAMPLER_TRAIN": "RandomSubsetTrainingSampler"}, "with RANDOM_SUBSET_RATIO"),
        ({"MODEL__LOAD_PROPOSALS": True, "DATASETS__PROPOSAL_FILES_TRAIN": ("p",)}, "unset MODEL.LOAD_PROPOSALS"),
        (
            {"MODEL__ROI_HEADS__NUM_CLASSES": 3},
            r"image .*test_labels_3.png of test_labels has the class index 3, but MODEL.ROI_HEADS.NUM_CLASSES is 3",
        ),
        (
            {"MODEL__META_ARCHITECTURE": "CenterNetDetector", "MODEL__CENTERNET__NUM_CLASSES": 1},
            r"has the class index 1, but MODEL.CENTERNET.NUM_CLASSES is 1",
        ),
        (
            {"MODEL__META_ARCHITECTURE": "DeformableDetr", "MODEL__DETR__NUM_CLASSES": 2},
            r"of test_labels has the class index 2, but MODEL.DETR.NUM_CLASSES is 2",
        ),
    ],
)
def test_wrong_settings_are_found_before_training(two_sets: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_train_loader(settings(**changes))


def test_classes_of_proposal_sets_do_not_matter(two_sets: Path) -> None:
    cfg = settings(MODEL__ROI_HEADS__NUM_CLASSES=1, DATALOADER__DATASET_ANN=["prop", "prop"])
    with pytest.raises(InputError, match="of test_labels has the class index"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ("test_boxes", "test_boxes")
    build_train_loader(cfg)


def test_an_empty_data_set(two_sets: Path) -> None:
    DatasetCatalog.register("test_empty", list)
    try:
        with pytest.raises(InputError, match="data set 'test_empty' has no images; check its annotation file"):
            get_detection_dataset_dicts_with_source("test_empty")
    finally:
        DatasetCatalog.remove("test_empty")
