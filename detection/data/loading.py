"""Training data from a config: records of all training sets, their sampler, and the loader of their batches."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Sampler

from centernet.data import ClassAwareSampler
from detection.class_counts import head_classes
from detection.data.mapper import build_train_mapper
from detection.data.samplers import MultiDatasetSampler, WeightedSampler
from detectron2.config import configurable
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_few_keypoints, filter_images_with_only_crowd_annotations
from detectron2.data.common import DatasetFromList
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from prompt_pretrain.accumulation import number_of_parts
from prompt_pretrain.errors import InputError
from prompt_pretrain.run_setup import explained_data
from prompt_pretrain.training_loader import TrainingLoader, group_indices, share_of_process

__all__ = ["build_custom_train_loader", "build_train_loader", "get_detection_dataset_dicts_with_source"]

logger = logging.getLogger(__name__)

SamplerFactory = Callable[[int], Sampler[int]]  # from the seed, which is equal on all processes


def build_train_loader(cfg: Any) -> TrainingLoader:
    """The endless, resumable loader of training batches that ``cfg`` describes, with its mapper."""
    return build_custom_train_loader(cfg, mapper=build_train_mapper(cfg))


def get_detection_dataset_dicts_with_source(
    dataset_names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
) -> list[dict]:
    """Records of registered data sets, one after the other, with "dataset_source": the position of theirs.

    Args:
        dataset_names: one or several. Their classes may differ in number: a smaller vocabulary may begin a larger one.
        filter_empty: leave out images without annotations; False if a data set has image labels only.
        min_keypoints: leave out images with fewer visible keypoints.
        proposal_files: not provided.
    Raises:
        InputError: a name is not registered, or no image of a data set is left.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    if not names:
        raise InputError("no data set is named: set DATASETS.TRAIN")
    if proposal_files:
        raise InputError("precomputed proposals cannot be used together with image labels: unset MODEL.LOAD_PROPOSALS")
    registered = set(DatasetCatalog.list())
    for name in names:
        if name not in registered:
            raise InputError(f"data set {name!r} of DATASETS.TRAIN is not registered; known are {sorted(registered)}")
    dataset_dicts: list[dict] = []
    for source, name in enumerate(names):
        records = [{**record, "dataset_source": source} for record in DatasetCatalog.get(name)]
        dataset_dicts += _filter(records, name, filter_empty, min_keypoints)
    return dataset_dicts


def _filter(records: list[dict], name: str, filter_empty: bool, min_keypoints: int) -> list[dict]:
    if not records:
        raise InputError(f"data set {name!r} has no images; check its annotation file")
    kept = records
    if "annotations" in records[0]:
        if filter_empty:
            kept = filter_images_with_only_crowd_annotations(kept)
        if min_keypoints > 0:
            kept = filter_images_with_few_keypoints(kept, min_keypoints)
    if not kept:
        raise InputError(
            f"none of the {len(records)} images of {name!r} has an annotation; if it has image labels only, set "
            f"DATALOADER.FILTER_EMPTY_ANNOTATIONS to False"
        )
    boxes = sum(len(record.get("annotations", ())) for record in kept)
    labels = sum(len(record.get("pos_category_ids", ())) for record in kept)
    logger.info("%s: %d of %d images, %d boxes, %d image labels", name, len(kept), len(records), boxes, labels)
    return kept


def _custom_train_loader_from_config(
    cfg: Any,
    mapper: Callable[[dict], Any] | None = None,
    *,
    dataset: list[dict] | None = None,
    sampler: Sampler[int] | SamplerFactory | None = None,
) -> dict[str, Any]:
    loader = cfg.DATALOADER
    _check_grouping(cfg)
    if dataset is None:
        dataset = _records(cfg)
        _check_classes(cfg, dataset)
    return {
        "dataset": dataset,
        "mapper": build_train_mapper(cfg) if mapper is None else mapper,
        "sampler": _sampler_factory(cfg, dataset) if sampler is None else sampler,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "parts": number_of_parts(cfg),
        "aspect_ratio_grouping": loader.ASPECT_RATIO_GROUPING,
        "num_workers": loader.NUM_WORKERS,
        "num_datasets": len(cfg.DATASETS.TRAIN),
        "multi_dataset_grouping": loader.MULTI_DATASET_GROUPING,
        "use_diff_bs_size": loader.USE_DIFF_BS_SIZE,
        "dataset_bs": loader.DATASET_BS,
        "seed": cfg.SEED,
    }


@configurable(from_config=_custom_train_loader_from_config)
def build_custom_train_loader(
    dataset: list[dict],
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler[int] | SamplerFactory | None = None,
    total_batch_size: int = 16,
    parts: int = 1,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    num_datasets: int = 1,
    multi_dataset_grouping: bool = False,
    use_diff_bs_size: bool = False,
    dataset_bs: Sequence[int] = (),
    seed: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> TrainingLoader:
    """An endless loader; also ``build_custom_train_loader(cfg, mapper=, dataset=, sampler=)``.

    Args:
        dataset: records, with "dataset_source" if they are to be grouped by data set.
        mapper: record -> sample.
        sampler: indices for this process, or a function from a seed to them; by default a ``TrainingSampler``.
        total_batch_size: images per iteration of all processes together.
        parts: batches per iteration of each process; see ``TrainingLoader``.
        aspect_ratio_grouping: only batches of images that are all wider than high, or all not.
        num_workers: worker processes per process; 0 loads in this one.
        num_datasets: number of data sets among the records.
        multi_dataset_grouping: only batches of images of one data set, and alike in aspect ratio.
        use_diff_bs_size: with the former, take the batch size from ``dataset_bs``.
        dataset_bs: images per batch of this process, for each data set.
        seed: of the order and of augmentations, equal on all processes; None or a negative one draws it together.
        collate_fn: list of samples -> batch; by default the list itself.
    Raises:
        InputError: a batch size is impossible.
    """
    groups, batch_sizes = None, [0]
    if multi_dataset_grouping:
        groups = group_indices(dataset, by_source=True)
        num_datasets = max(num_datasets, int(groups.max()) // 2 + 1)
        batch_sizes = [0] * (2 * num_datasets)
    elif aspect_ratio_grouping:
        groups, batch_sizes = group_indices(dataset, by_source=False), [0, 0]
    if use_diff_bs_size and multi_dataset_grouping:
        if len(dataset_bs) < num_datasets:
            raise InputError(
                f"DATALOADER.DATASET_BS has {len(dataset_bs)} entries for {num_datasets} training sets: give one each"
            )
        batch_sizes = [dataset_bs[group // 2] for group in range(2 * num_datasets)]
    else:
        batch_sizes = [share_of_process(total_batch_size, parts)] * len(batch_sizes)
    return TrainingLoader(
        DatasetFromList(dataset, copy=False),
        mapper,
        _as_factory(sampler, len(dataset)),
        batch_sizes,
        groups=groups,
        parts=parts,
        seed=seed,
        num_workers=num_workers,
        collate_fn=collate_fn,
        input_errors=(SizeMismatchError,),
    )


def _records(cfg: Any) -> list[dict]:
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    proposals = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
    load = get_detection_dataset_dicts_with_source if _is_mixed(cfg) else get_detection_dataset_dicts
    with explained_data():
        return load(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints,
            proposal_files=proposals,
        )


def _is_mixed(cfg: Any) -> bool:
    loader = cfg.DATALOADER
    return cfg.WITH_IMAGE_LABELS or loader.MULTI_DATASET_GROUPING or loader.SAMPLER_TRAIN == "MultiDatasetSampler"


def _sampler_factory(cfg: Any, dataset: list[dict]) -> SamplerFactory:
    loader, size = cfg.DATALOADER, len(dataset)
    if loader.SAMPLER_TRAIN == "TrainingSampler":
        return lambda seed: TrainingSampler(size, seed=seed)
    if loader.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, loader.REPEAT_THRESHOLD, sqrt=loader.REPEAT_SQRT
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    if loader.SAMPLER_TRAIN == "RandomSubsetTrainingSampler" and "RANDOM_SUBSET_RATIO" in loader:
        ratio = loader.RANDOM_SUBSET_RATIO
        return lambda seed: RandomSubsetTrainingSampler(size, ratio, seed_shuffle=seed, seed_subset=seed)
    if loader.SAMPLER_TRAIN == "MultiDatasetSampler":
        return MultiDatasetSampler(
            dataset, loader.DATASET_RATIO, loader.USE_RFS, loader.DATASET_ANN, loader.REPEAT_THRESHOLD, seed=0
        ).with_seed
    if loader.SAMPLER_TRAIN == "ClassAwareSampler":
        # Its weights only: the factory must not keep the records, which the loader has in a compact form.
        return WeightedSampler(ClassAwareSampler(dataset, seed=0).weights, seed=0).with_seed
    raise InputError(
        f"DATALOADER.SAMPLER_TRAIN is {loader.SAMPLER_TRAIN!r}, expected TrainingSampler, RepeatFactorTrainingSampler, "
        f"ClassAwareSampler, MultiDatasetSampler or, with RANDOM_SUBSET_RATIO, RandomSubsetTrainingSampler"
    )


def _as_factory(sampler: Sampler[int] | SamplerFactory | None, size: int) -> SamplerFactory:
    if sampler is None:
        return lambda seed: TrainingSampler(size, seed=seed)
    return (lambda seed: sampler) if isinstance(sampler, Sampler) else sampler


def _check_grouping(cfg: Any) -> None:
    """A batch has one kind of annotation and one size."""
    loader = cfg.DATALOADER
    if loader.MULTI_DATASET_GROUPING or len(cfg.DATASETS.TRAIN) < 2:
        return
    kinds = set(loader.DATASET_ANN) if cfg.WITH_IMAGE_LABELS else {"box"}
    if loader.USE_DIFF_BS_SIZE or len(kinds) > 1:
        raise InputError(
            f"DATALOADER.MULTI_DATASET_GROUPING is False, but the {len(cfg.DATASETS.TRAIN)} training sets "
            f"{'have batch sizes of their own' if loader.USE_DIFF_BS_SIZE else 'differ in their annotations'}; set it "
            f"to True"
        )


def _check_classes(cfg: Any, dataset: list[dict]) -> None:
    """Class indices beyond the head's would train nothing, or crash an hour later."""
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":  # knows no classes
        return
    key, num_classes = head_classes(cfg)
    for record in dataset:
        source = record.get("dataset_source", 0)
        kinds = cfg.DATALOADER.DATASET_ANN
        # Boxes of a "prop" or "proptag" set train the proposals only, so their classes don't matter.
        only_proposals = cfg.WITH_IMAGE_LABELS and source < len(kinds) and kinds[source].startswith("prop")
        annotations = () if only_proposals else record.get("annotations", ())
        classes = [annotation["category_id"] for annotation in annotations]
        classes += record.get("pos_category_ids", ())
        if classes and not 0 <= min(classes) <= max(classes) < num_classes:
            wrong = min(classes) if min(classes) < 0 else max(classes)
            raise InputError(
                f"image {record.get('file_name', record.get('image_id'))} of {cfg.DATASETS.TRAIN[source]} has the "
                f"class index {wrong}, but {key} is {num_classes}; set it to the number of classes of the training sets"
            )
