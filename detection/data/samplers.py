"""Which images come next: weighted streams, and the weights of several data sets that are trained on together."""

import copy
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.sampler import Sampler

from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from prompt_pretrain.errors import InputError

__all__ = ["MultiDatasetSampler", "WeightedSampler", "repeat_factors_from_tag_frequency"]

logger = logging.getLogger(__name__)


class WeightedSampler(Sampler[int]):
    """An endless stream of indices, drawn with replacement in proportion to their weights.

    All processes draw the same stream; process k of W takes the elements k, k + W, ...

    Args:
        weights: (N,) float32.
        seed: equal on all processes; None draws one together.
    """

    def __init__(self, weights: Tensor, seed: int | None = None) -> None:
        self.weights = weights
        self._seed = comm.shared_random_seed() if seed is None else int(seed)
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def with_seed(self, seed: int) -> "WeightedSampler":
        """The same weights with another stream."""
        sampler = copy.copy(self)
        sampler._seed = seed
        return sampler

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        first = self._rank
        while True:
            drawn = torch.multinomial(self.weights, len(self.weights), replacement=True, generator=generator)
            yield from drawn[first :: self._world_size].tolist()
            # Where this process goes on in the next round: rounds need not be multiples of the number of processes.
            first = (first - len(self.weights)) % self._world_size


class MultiDatasetSampler(WeightedSampler):
    """A stream in which each data set has a given share.

    An image of data set d has the weight ``max(sizes) / size_d * ratio_d / sum(ratios) * repeat``, where ``repeat`` is
    its repeat factor divided by the mean of its data set's if ``use_rfs[d]``, else 1.

    Args:
        dataset_dicts: records with "dataset_source", their position among the data sets.
        dataset_ratio: share of each data set, up to a common factor.
        use_rfs: whether images with rare classes of a data set come more often.
        dataset_ann: kind of annotation of each data set; "box" counts annotations, others "pos_category_ids".
        repeat_threshold: share of images below which a class is rare.
        seed: equal on all processes; None draws one together.
    Attributes:
        sizes: images per data set.
        weights: (N,) float32, one per image.
    Raises:
        InputError: a data set has no images, or the arguments differ in length.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[dict],
        dataset_ratio: Sequence[float],
        use_rfs: Sequence[bool],
        dataset_ann: Sequence[str],
        repeat_threshold: float = 0.001,
        seed: int | None = None,
    ) -> None:
        sources = np.array([record["dataset_source"] for record in dataset_dicts], dtype=np.int64)
        _check_arguments(sources, dataset_ratio, use_rfs, dataset_ann)
        self.sizes = np.bincount(sources, minlength=len(dataset_ratio)).tolist()
        _check_sizes(self.sizes)
        all_weights = torch.zeros(len(sources))
        for source, (size, ratio) in enumerate(zip(self.sizes, dataset_ratio, strict=True)):
            where = torch.from_numpy(np.flatnonzero(sources == source))
            weights = torch.full((size,), max(self.sizes) / size * ratio / sum(dataset_ratio))
            if use_rfs[source]:
                records = [dataset_dicts[int(index)] for index in where]
                factors = _repeat_factors(records, dataset_ann[source], repeat_threshold)
                weights = weights * (factors * (size / factors.sum()))
            all_weights[where] = weights
        super().__init__(all_weights, seed)
        logger.info("images per training set: %s; drawn as %s", self.sizes, list(dataset_ratio))


def repeat_factors_from_tag_frequency(dataset_dicts: Sequence[dict], repeat_thresh: float) -> Tensor:
    """Repeat factors of image-labelled records, by their "pos_category_ids".

    A class that stands f times per image on average has the factor max(1, (t / f) ** 0.5); an image has the largest
    factor of its classes, 1 without any. A class listed twice for an image counts twice.

    Returns:
        (N,) float32.
    """
    counts = Counter(category for record in dataset_dicts for category in record.get("pos_category_ids", ()))
    factors = {
        category: max(1.0, math.sqrt(repeat_thresh * len(dataset_dicts) / count)) for category, count in counts.items()
    }
    return torch.tensor(
        [
            max((factors[category] for category in record.get("pos_category_ids", ())), default=1.0)
            for record in dataset_dicts
        ],
        dtype=torch.float32,
    )


def _repeat_factors(records: list[dict], annotation: str, threshold: float) -> Tensor:
    if annotation == "box":
        return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, threshold)
    return repeat_factors_from_tag_frequency(records, threshold)


def _check_arguments(
    sources: np.ndarray, dataset_ratio: Sequence[float], use_rfs: Sequence[bool], dataset_ann: Sequence[str]
) -> None:
    count = int(sources.max()) + 1 if len(sources) else 0
    lengths = {"DATASET_RATIO": dataset_ratio, "USE_RFS": use_rfs, "DATASET_ANN": dataset_ann}
    for key, value in lengths.items():
        if len(value) != len(dataset_ratio) or len(value) < count:
            raise InputError(
                f"DATALOADER.{key} has {len(value)} entries for {max(count, len(dataset_ratio))} training sets: "
                f"{list(value)}; give one entry per name in DATASETS.TRAIN"
            )
    if any(ratio < 0 for ratio in dataset_ratio) or not sum(dataset_ratio) > 0:
        raise InputError(
            f"DATALOADER.DATASET_RATIO is {list(dataset_ratio)}; expected shares of 0 or more, not all of them 0"
        )


def _check_sizes(sizes: Sequence[int]) -> None:
    empty = [number for number, size in enumerate(sizes) if size == 0]
    if empty:
        raise InputError(
            f"of the {len(sizes)} training sets, number {empty[0] + 1} has no images; name one data set per entry of "
            f"DATALOADER.DATASET_RATIO, and set DATALOADER.FILTER_EMPTY_ANNOTATIONS to False where images have no boxes"
        )
