"""Samplers for one or several processes: all processes hold the same stream and take every W-th element of it."""

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data.sampler import Sampler

from detectron2.utils import comm

__all__ = ["InferenceSampler", "RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler", "TrainingSampler"]

logger = logging.getLogger(__name__)


class _EndlessSampler(Sampler[int]):
    """Rank k of W takes the elements k, k + W, ... of an endless stream that is equal on all ranks."""

    def __init__(self, seed: int | None) -> None:
        self._seed = comm.shared_random_seed() if seed is None else int(seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def state_dict(self) -> dict[str, int]:
        """What another process needs to give the same stream."""
        return {"seed": self._seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Give the stream of the sampler that ``state`` is of."""
        self._seed = state["seed"]

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            yield from self._epoch(generator).tolist()

    def _epoch(self, generator: torch.Generator) -> Tensor:
        """The indices of the next pass over the data."""
        raise NotImplementedError


class TrainingSampler(_EndlessSampler):
    """All indices of a data set again and again, by default in a new order each time.

    Args:
        size: length of the data set.
        shuffle: whether to change the order.
        seed: equal on all processes; None draws one together.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"the size of a data set must be an int, got {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"a data set to train on needs at least one image, got {size}")
        super().__init__(seed)
        self._size = size
        self._shuffle = shuffle
        logger.info("TrainingSampler over %d images, seed %d", size, self._seed)

    def _epoch(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(self._size, generator=generator) if self._shuffle else torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """The same over a random share of the data set that is drawn once.

    Args:
        size: length of the data set.
        subset_ratio: share to keep, in (0, 1].
        shuffle: whether to change the order in each pass.
        seed_shuffle, seed_subset: equal on all processes; None draws one together.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size, shuffle, seed_shuffle)
        if not 0.0 < subset_ratio <= 1.0:
            raise ValueError(f"the share of images to train on must be in (0, 1], got {subset_ratio}")
        kept = int(size * subset_ratio)
        if kept == 0:
            raise ValueError(f"{subset_ratio} of {size} images is less than one image")
        self._kept = kept
        self._draw_subset(comm.shared_random_seed() if seed_subset is None else int(seed_subset))
        logger.info("of these, %d are kept", kept)

    def state_dict(self) -> dict[str, int]:
        return {**super().state_dict(), "seed_subset": self._seed_subset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self._draw_subset(state["seed_subset"])

    def _draw_subset(self, seed: int) -> None:
        self._seed_subset = seed
        generator = torch.Generator()
        generator.manual_seed(seed)
        self._subset = torch.randperm(self._size, generator=generator)[: self._kept]

    def _epoch(self, generator: torch.Generator) -> Tensor:
        if not self._shuffle:
            return self._subset
        return self._subset[torch.randperm(len(self._subset), generator=generator)]


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Images with rare classes more often (LVIS, arXiv 1908.03195).

    In each pass an image comes as often as its factor says; a fractional part is decided by chance.

    Args:
        repeat_factors: (N,) float, one per image, e.g. of ``repeat_factors_from_category_frequency``.
        shuffle: whether to shuffle each pass.
        seed: equal on all processes; None draws one together.
    """

    def __init__(self, repeat_factors: Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(seed)
        if len(repeat_factors) == 0 or not bool(torch.isfinite(repeat_factors).all()) or repeat_factors.max() <= 0:
            raise ValueError("repeat factors must be finite, one per image and at least one of them positive")
        self._shuffle = shuffle
        self._whole = torch.trunc(repeat_factors)
        self._fraction = repeat_factors - self._whole

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> Tensor:
        """Factors that bring classes in fewer than ``repeat_thresh`` of the images up towards that share.

        A class in the share f of the images has the factor max(1, (t / f) ** 0.5), or max(1, t / f) without ``sqrt``;
        an image has the largest factor of its classes, crowd annotations included.

        Returns:
            (N,) float32.
        """
        classes_per_image = [{anno["category_id"] for anno in record["annotations"]} for record in dataset_dicts]
        image_counts: dict[int, int] = defaultdict(int)
        for classes in classes_per_image:
            for category in classes:
                image_counts[category] += 1
        exponent = 0.5 if sqrt else 1.0
        factors = {
            category: max(1.0, math.pow(repeat_thresh / (count / len(dataset_dicts)), exponent))
            for category, count in image_counts.items()
        }
        return torch.tensor(
            [max((factors[category] for category in classes), default=1.0) for classes in classes_per_image],
            dtype=torch.float32,
        )

    def _epoch(self, generator: torch.Generator) -> Tensor:
        chance = torch.rand(len(self._fraction), generator=generator)
        repeats = self._whole + (chance < self._fraction).float()
        indices = torch.repeat_interleave(repeats.to(torch.int64))
        return indices[torch.randperm(len(indices), generator=generator)] if self._shuffle else indices


class InferenceSampler(Sampler[int]):
    """Each index exactly once: every process takes one contiguous part, the first ones an element more.

    Args:
        size: length of the data set.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        assert size > 0, f"a data set to run on needs at least one image, got {size}"
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, rest = divmod(total_size, world_size)
        start = rank * share + min(rank, rest)
        return range(start, start + share + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
