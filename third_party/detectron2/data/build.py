"""From names of data sets to loaders of batches."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch.utils.data as torchdata
from tabulate import tabulate

from detectron2.config.configurable import configurable
from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.common import AspectRatioGroupedDataset, DatasetFromList, MapDataset
from detectron2.data.dataset_mapper import DatasetMapper
from detectron2.data.detection_utils import CorruptImageError, check_metadata_consistency
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.data.training_loader import TrainingLoader, as_it_is, worker_init_reset_seed
from detectron2.utils import comm
from detectron2.utils.left_out import needs_real_detectron2
from detectron2.utils.logger import log_first_n

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

logger = logging.getLogger(__name__)

_HISTOGRAM_COLUMNS = 6


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The entries that have an annotation that is not a crowd."""
    kept = [record for record in dataset_dicts if any(anno.get("iscrowd", 0) == 0 for anno in record["annotations"])]
    dropped = len(dataset_dicts) - len(kept)
    logger.info("removed %d images without usable annotations, %d are left", dropped, len(kept))
    return kept


def filter_images_with_few_keypoints(dataset_dicts: list[dict], min_keypoints_per_image: int) -> list[dict]:
    """The entries with at least this many visible keypoints."""

    def visible(record: dict) -> int:
        annotations = (anno for anno in record["annotations"] if "keypoints" in anno)
        return sum(int((np.array(anno["keypoints"][2::3]) > 0).sum()) for anno in annotations)

    kept = [record for record in dataset_dicts if visible(record) >= min_keypoints_per_image]
    dropped = len(dataset_dicts) - len(kept)
    logger.info("removed %d images with fewer than %d keypoints", dropped, min_keypoints_per_image)
    return kept


def load_proposals_into_dataset(dataset_dicts: list[dict], proposal_file: str) -> list[dict]:
    """Not provided: precomputed proposals need the real detectron2."""
    raise needs_real_detectron2("detectron2.data.load_proposals_into_dataset, MODEL.LOAD_PROPOSALS")


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log a table of the number of instances of each class, crowds left out.

    Raises:
        AssertionError: a class index is out of range.
    """
    counts: Counter[int] = Counter()
    for record in dataset_dicts:
        classes = [anno["category_id"] for anno in record["annotations"] if not anno.get("iscrowd", 0)]
        for index in classes:
            assert 0 <= index < len(class_names), (
                f"{record.get('file_name', record.get('image_id'))}: category_id {index} is not in 0 to "
                f"{len(class_names) - 1}, the indices of the {len(class_names)} classes"
            )
        counts.update(classes)
    cells: list[Any] = []
    for index, name in enumerate(class_names):
        cells += [name if len(name) <= 13 else name[:11] + "..", counts[index]]
    cells += [None] * (len(cells) % 2)
    if len(class_names) > 1:
        cells += ["total", counts.total()]
    columns = min(_HISTOGRAM_COLUMNS, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    headers = ["category", "#instances"] * (columns // 2)
    table = tabulate(rows, headers=headers, tablefmt="pipe", numalign="left", stralign="center")
    log_first_n(
        logging.INFO, f"Distribution of instances among all {len(class_names)} categories:\n{table}", key="message"
    )


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | torchdata.Dataset:
    """The entries of registered data sets, one after the other.

    Args:
        names: one or several.
        filter_empty: leave out images without annotations, or with crowds only.
        min_keypoints: leave out images with fewer visible keypoints.
        proposal_files: not provided.
        check_consistency: demand equal class names of all data sets.
    Raises:
        AssertionError: no data set is named, or one of them is empty.
        KeyError: a name is not registered.
        ValueError: class names differ, or no image is left.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert names, "no data set is named: set DATASETS.TRAIN or DATASETS.TEST"
    if proposal_files is not None:
        raise needs_real_detectron2("get_detection_dataset_dicts(proposal_files=...), MODEL.LOAD_PROPOSALS")
    datasets = [DatasetCatalog.get(name) for name in names]
    if isinstance(datasets[0], torchdata.Dataset):
        return torchdata.ConcatDataset(datasets) if len(datasets) > 1 else datasets[0]
    for name, records in zip(names, datasets, strict=True):
        assert len(records), f"data set {name!r} is empty: no image was found for it"
    dataset_dicts = [record for records in datasets for record in records]
    has_instances = "annotations" in dataset_dicts[0]
    if filter_empty and has_instances:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    if min_keypoints > 0 and has_instances:
        dataset_dicts = filter_images_with_few_keypoints(dataset_dicts, min_keypoints)
    if check_consistency and has_instances and MetadataCatalog.get(names[0]).get("thing_classes") is not None:
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(names[0]).thing_classes)
    if not dataset_dicts:
        raise ValueError(
            f"no image of {', '.join(names)} has a usable annotation; set DATALOADER.FILTER_EMPTY_ANNOTATIONS to "
            f"False to use images without any"
        )
    return dataset_dicts


def build_batch_data_loader(
    dataset: list | torchdata.Dataset,
    sampler: torchdata.Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    seed: int | None = None,
    **loader_options: Any,
) -> Any:
    """A loader of batches of samples, for training.

    Args:
        dataset: samples by index, or a stream of them without a sampler.
        sampler: indices for this process.
        total_batch_size: samples per iteration of all processes together.
        aspect_ratio_grouping: batches of images that are all wider than high, or all not; needs "width" and "height".
        num_workers: worker processes per process; 0 loads in this one.
        collate_fn: list of samples -> batch; by default the list itself.
        drop_last: leave out an incomplete last batch, should the sampler end.
        single_gpu_batch_size: samples per iteration of this process, in place of ``total_batch_size``.
        seed: of the random numbers of augmentations; None draws one.
        loader_options: further arguments of ``torch.utils.data.DataLoader``.
    Raises:
        ValueError: ``total_batch_size`` is no multiple of the number of processes.
    """
    batch_size = single_gpu_batch_size or _share_of_process(total_batch_size)
    collate_fn = collate_fn or trivial_batch_collator
    loader_options = {"num_workers": num_workers, "worker_init_fn": worker_init_reset_seed, **loader_options}
    if not isinstance(dataset, torchdata.IterableDataset):
        assert sampler is not None, "a data set that is not a stream needs a sampler"
        return TrainingLoader(
            DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset,
            sampler,
            batch_size,
            aspect_ratio_grouping=aspect_ratio_grouping,
            seed=seed,
            collate_fn=collate_fn,
            drop_last=drop_last,
            **loader_options,
        )
    assert sampler is None, "a stream has an order of its own: sampler must be None"
    if not aspect_ratio_grouping:
        return torchdata.DataLoader(
            dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn, **loader_options
        )
    samples = torchdata.DataLoader(dataset, batch_size=None, collate_fn=as_it_is, **loader_options)
    return MapDataset(AspectRatioGroupedDataset(samples, batch_size), collate_fn)


def _share_of_process(total_batch_size: int) -> int:
    world_size = comm.get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size:
        raise ValueError(
            f"the total batch size (SOLVER.IMS_PER_BATCH) is {total_batch_size}; it must be positive and a multiple of "
            f"the number of processes, {world_size}"
        )
    return total_batch_size // world_size


def _train_loader_from_config(
    cfg: Any, mapper: Callable[[dict], Any] | None = None, *, dataset: Any = None, sampler: Any = None
) -> dict[str, Any]:
    # At a negative seed the real detectron2 seeds its samplers with it, so all runs see one order; here it means none.
    seed = cfg.SEED if cfg.SEED >= 0 else None
    if dataset is None:
        if cfg.MODEL.LOAD_PROPOSALS:
            raise needs_real_detectron2("MODEL.LOAD_PROPOSALS (precomputed proposals)")
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        )
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = _build_training_sampler(cfg, dataset, seed)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "seed": seed,
    }


def _build_training_sampler(cfg: Any, dataset: Any, seed: int | None) -> torchdata.Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO")
        if ratio is None:
            raise ValueError(
                "RandomSubsetTrainingSampler needs DATALOADER.RANDOM_SUBSET_RATIO, which is not among the defaults: "
                "set it on the config, e.g. to 0.1"
            )
        return RandomSubsetTrainingSampler(len(dataset), ratio, seed_shuffle=seed, seed_subset=seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}, expected TrainingSampler, RepeatFactorTrainingSampler or "
        f"RandomSubsetTrainingSampler"
    )


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list | torchdata.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    skip_corrupt_images: bool = True,
    **loader_options: Any,
) -> Any:
    """An endless loader of training batches; also ``build_detection_train_loader(cfg, mapper=, dataset=, sampler=)``.

    Args:
        dataset: entries, e.g. of ``get_detection_dataset_dicts``.
        mapper: entry -> sample; None leaves out the entry or, in place of the function, maps nothing.
        sampler: indices for this process; by default a ``TrainingSampler``.
        total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, loader_options: as in
            ``build_batch_data_loader``.
        skip_corrupt_images: log images that cannot be read and take others, instead of raising.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, _SkipCorruptImages(mapper) if skip_corrupt_images else mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "a stream has an order of its own: sampler must be None"
    elif sampler is None:
        sampler = TrainingSampler(len(dataset), seed=loader_options.get("seed"))
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **loader_options,
    )


def _test_loader_from_config(
    cfg: Any, dataset_name: str | Sequence[str], mapper: Callable[[dict], Any] | None = None
) -> dict[str, Any]:
    if cfg.MODEL.LOAD_PROPOSALS:
        raise needs_real_detectron2("MODEL.LOAD_PROPOSALS (precomputed proposals)")
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if isinstance(dataset, torchdata.IterableDataset) else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list | torchdata.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> torchdata.DataLoader:
    """A loader of each entry once, in order; also ``build_detection_test_loader(cfg, name, mapper=)``.

    Args:
        dataset: entries, e.g. of ``get_detection_dataset_dicts``; none is left out.
        mapper: entry -> sample.
        sampler: indices for this process; by default an ``InferenceSampler``.
        batch_size: samples per batch of this process. The last batch may have fewer.
        num_workers, collate_fn: as in ``build_batch_data_loader``.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "a stream has an order of its own: sampler must be None"
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """The list itself: images of different sizes are put together by the model."""
    return batch


class _SkipCorruptImages:
    """A mapper that gives None, with a count in the log, where an image cannot be read."""

    def __init__(self, mapper: Callable[[dict], Any]) -> None:
        self.mapper = mapper
        self.count = 0

    def __call__(self, record: dict) -> Any:
        try:
            return self.mapper(record)
        except CorruptImageError as error:
            self.count += 1
            logger.warning("%s (number %d that this process leaves out)", error, self.count)
            return None
