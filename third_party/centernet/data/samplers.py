"""Sampling images by their classes."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data.sampler import Sampler

from detectron2.utils import comm

__all__ = ["ClassAwareSampler"]


class ClassAwareSampler(Sampler[int]):
    """Endless indices of images, drawn so that every class comes up about equally often.

    An image weighs the sum, over its classes, of 1 / (number of images with the class). Process k of W takes the
    elements k, k + W, … of a stream that all share.

    Args:
        dataset_dicts: images with ``annotations``, each of a ``category_id``.
        seed: equal on all processes; None draws one together.
    Raises:
        ValueError: no image has an annotation.
    """

    def __init__(self, dataset_dicts: Sequence[dict[str, Any]], seed: int | None = None) -> None:
        self.weights = self._class_balance_weights(dataset_dicts)
        if not self.weights.any():
            raise ValueError(
                f"ClassAwareSampler draws images by their annotations, but none of {len(dataset_dicts)} images has "
                f"one; set DATALOADER.SAMPLER_TRAIN to TrainingSampler"
            )
        self._seed = comm.shared_random_seed() if seed is None else int(seed)

    @staticmethod
    def _class_balance_weights(dataset_dicts: Sequence[dict[str, Any]]) -> Tensor:
        """(number of images,) float32."""
        classes = [{each["category_id"] for each in entry["annotations"]} for entry in dataset_dicts]
        images_of = Counter(itertools.chain.from_iterable(classes))
        return torch.tensor([sum(1 / images_of[label] for label in each) for each in classes], dtype=torch.float32)

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), comm.get_rank(), None, comm.get_world_size())

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            yield from torch.multinomial(
                self.weights, len(self.weights), replacement=True, generator=generator
            ).tolist()
