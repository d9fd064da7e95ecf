"""Loaders of training and test data whose samples say which data set they are of."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from mask_former.data.dataset_mappers.mask_former_semantic_dataset_mapper import MaskFormerSemanticDatasetMapper
from mask_former.data.label_maps import LabelMapError
from prompt_pretrain.accumulation import number_of_parts
from prompt_pretrain.errors import InputError
from prompt_pretrain.run_setup import explained_data
from prompt_pretrain.training_loader import TrainingLoader, group_indices, share_of_process
from segmentation.data.binary_mapper import MaskFormerBinarySemanticDatasetMapper
from segmentation.data.checked_mapper import CheckedMapper
from segmentation.data.sampling import log_class_histogram, sample_per_class

__all__ = ["build_test_loader", "build_train_loader", "build_train_mapper", "get_records"]

_SEMANTIC, _BINARY = "mask_former_semantic", "mask_former_binary_semantic"

Mapper = Callable[[dict[str, Any]], Any]


def get_records(name: str, *, filter_empty: bool = False) -> list[dict[str, Any]]:
    """Records of a registered data set, each with ``meta = {"dataset_name": name}``.

    Raises:
        InputError: the name is not registered, the data set is empty, or its annotations are wrong.
    """
    if name not in DatasetCatalog.list():
        raise InputError(
            f"data set {name!r} of DATASETS.TRAIN or DATASETS.TEST is not registered; known are "
            f"{', '.join(sorted(DatasetCatalog.list()))}"
        )
    with explained_data(f"data set {name!r} of DATASETS.TRAIN or DATASETS.TEST cannot be used"):
        records = get_detection_dataset_dicts(name, filter_empty=filter_empty)
    for record in records:
        assert "meta" not in record, f"a record of data set {name!r} has a 'meta' already"
    return [{**record, "meta": {"dataset_name": name}} for record in records]


def build_train_loader(cfg: CfgNode) -> TrainingLoader:
    """The endless, resumable loader of training batches.

    INPUT.DATASET_MAPPER_NAME ``mask_former_binary_semantic`` draws DATASETS.SAMPLE_PER_CLASS masks of each class.
    Batches mix upright and wide images where all samples have one size, or records do not tell theirs: grouping by
    shape only saves padding.

    Raises:
        InputError: no data set, an unknown or empty one, data sets of different classes, a batch size that cannot be
            shared by the processes, another sampler.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise InputError("no data set is named: set DATASETS.TRAIN")
    _check_equal_classes(names)
    records = [
        record for name in names for record in get_records(name, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    ]
    mapper_name = cfg.INPUT.DATASET_MAPPER_NAME
    if mapper_name == _BINARY:
        _check_has_categories(records, names)
        records = sample_per_class(records, cfg.DATASETS.SAMPLE_PER_CLASS, cfg.DATASETS.SAMPLE_SEED)
        log_class_histogram(records, MetadataCatalog.get(names[0]).stuff_classes)
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise InputError(f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, expected TrainingSampler")
    parts = number_of_parts(cfg)
    count, batch_size = len(records), share_of_process(cfg.SOLVER.IMS_PER_BATCH, parts)
    one_size = mapper_name == _BINARY or (mapper_name == _SEMANTIC and cfg.INPUT.SIZE_DIVISIBILITY > 0)
    tell_size = all("width" in record and "height" in record for record in records)
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING and tell_size and not one_size
    return TrainingLoader(
        DatasetFromList(records, copy=False),
        build_train_mapper(cfg),
        lambda seed: TrainingSampler(count, seed=seed),
        [batch_size] * (2 if grouped else 1),
        groups=group_indices(records, by_source=False) if grouped else None,
        parts=parts,
        seed=cfg.SEED,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        input_errors=(LabelMapError, SizeMismatchError),
        may_give_none=mapper_name == _BINARY,  # where a crop lost its class
    )


def build_train_mapper(cfg: CfgNode) -> Mapper:
    """The mapper of INPUT.DATASET_MAPPER_NAME, detectron2's for names that are not of MaskFormer or ZSSeg."""
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name == _SEMANTIC:
        try:
            return MaskFormerSemanticDatasetMapper(cfg, True)
        except ValueError as error:
            raise InputError(str(error)) from error
    return MaskFormerBinarySemanticDatasetMapper(cfg, True) if name == _BINARY else DatasetMapper(cfg, is_train=True)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """A loader of each record once, SOLVER.TEST_IMS_PER_BATCH at a time in each process.

    Label maps are read only with ORACLE, by the mapper of INPUT.DATASET_MAPPER_NAME.

    Raises:
        InputError: an unknown or empty data set, a batch size that is not positive; from the loader: files that cannot
            be read.
    """
    if cfg.SOLVER.TEST_IMS_PER_BATCH < 1:
        raise InputError(f"SOLVER.TEST_IMS_PER_BATCH is {cfg.SOLVER.TEST_IMS_PER_BATCH}, expected 1 or more")
    records = get_records(dataset_name)
    if not cfg.ORACLE:
        records = [{key: value for key, value in record.items() if key != "sem_seg_file_name"} for record in records]
    elif cfg.INPUT.DATASET_MAPPER_NAME == _BINARY:
        _check_has_categories(records, (dataset_name,))
    mapper = CheckedMapper(_test_mapper(cfg, dataset_name))
    dataset = DatasetFromList(records, copy=False)
    return DataLoader(
        MapDataset(dataset, mapper),
        batch_size=cfg.SOLVER.TEST_IMS_PER_BATCH,
        sampler=InferenceSampler(len(dataset)),
        drop_last=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )


def _test_mapper(cfg: CfgNode, dataset_name: str) -> Mapper:
    name = cfg.INPUT.DATASET_MAPPER_NAME if cfg.ORACLE else ""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (dataset_name,)  # whose classes the mappers read
    if name == _SEMANTIC:
        return MaskFormerSemanticDatasetMapper(cfg, False)
    if name == _BINARY:
        return MaskFormerBinarySemanticDatasetMapper(cfg, False)
    return DatasetMapper(cfg, is_train=False)


def _check_equal_classes(names: tuple[str, ...]) -> None:
    first, *others = names
    classes = MetadataCatalog.get(first).get("stuff_classes")
    for name in others:
        if MetadataCatalog.get(name).get("stuff_classes") != classes:
            raise InputError(
                f"the data sets {first} and {name} of DATASETS.TRAIN have different classes; one model learns one list"
            )


def _check_has_categories(records: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    if any("category_id" not in record for record in records):
        raise InputError(
            f"INPUT.DATASET_MAPPER_NAME {_BINARY} needs one record per class of an image, unlike {', '.join(names)}; "
            f"use a data set such as voc_sem_seg_train_classification"
        )
