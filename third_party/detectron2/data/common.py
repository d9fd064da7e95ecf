"""Data sets as sequences and streams, and the functions that map over them."""

import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata

from detectron2.utils.serialize import PicklableWrapper

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)

_MANY_FAILURES = 3


class DatasetFromList(torchdata.Dataset):
    """A list as a data set.

    Args:
        lst: the items.
        copy: give out deep copies, so that users may change what they get. Without effect with ``serialize``.
        serialize: keep the items pickled in one tensor. Worker processes then share it instead of each slowly copying
            the pages that reference counts touch, and every access makes a fresh object.
    """

    def __init__(self, lst: list[Any], copy: bool = True, serialize: bool = True) -> None:
        if not isinstance(lst, list):
            lst = list(lst)
        self._copy = copy
        self._items = _PickledList(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, idx: int) -> Any:
        item = self._items[idx]
        return copy.deepcopy(item) if self._copy and not isinstance(self._items, _PickledList) else item


class _PickledList:
    """Items pickled one after the other into a byte tensor, which other processes can share."""

    def __init__(self, items: list[Any]) -> None:
        pickled = [
            np.frombuffer(pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL), dtype=np.uint8) for item in items
        ]
        ends = np.cumsum([len(piece) for piece in pickled], dtype=np.int64)
        self._bytes = torch.from_numpy(np.concatenate(pickled) if pickled else np.empty(0, dtype=np.uint8))
        self._ends = torch.from_numpy(ends)
        logger.info("%d items take %.2f MiB serialized", len(items), len(self._bytes) / 2**20)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        if idx < 0:
            idx += len(self)
        if not 0 <= idx < len(self):
            raise IndexError(f"index {idx} of a data set of {len(self)} items")
        start = int(self._ends[idx - 1]) if idx else 0
        return pickle.loads(memoryview(self._bytes[start : int(self._ends[idx])].numpy()))


class MapDataset(torchdata.Dataset):
    """``map_func`` over a data set; where it returns None, another random item comes instead.

    Which one follows from the state of Python's ``random`` alone, and not from what came before: a training loader
    that seeds it for each place in its stream gives the same items after an interruption.

    Over an ``IterableDataset`` it is a stream, which leaves out what ``map_func`` returns None for.

    Args:
        dataset: a sequence-like or iterable data set.
        map_func: item -> sample or None. Lambdas and local functions survive the way to spawned workers if cloudpickle
            is installed.
    """

    def __new__(cls, dataset: torchdata.Dataset, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, torchdata.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[Any, Any]:
        return self._dataset, self._map_func

    def __init__(self, dataset: torchdata.Dataset, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        index, failed = int(idx), set[int]()
        while True:
            sample = self._map_func(self._dataset[index])
            if sample is not None:
                return sample
            failed.add(index)
            if len(failed) >= _MANY_FAILURES:
                logger.warning("no sample from item %d after %d tries with other items", idx, len(failed))
            if len(failed) >= len(self):
                raise RuntimeError(
                    f"not one of the {len(self)} items of the data set gave a sample: the mapper returned None for each"
                )
            while index in failed:
                index = random.randrange(len(self))


class _MapIterableDataset(torchdata.IterableDataset):
    def __init__(self, dataset: torchdata.IterableDataset, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        return (sample for sample in map(self._map_func, self._dataset) if sample is not None)


class ToIterableDataset(torchdata.IterableDataset):
    """A sequence-like data set in the order of a sampler.

    Args:
        dataset: items by index.
        sampler: the indices, equal in all workers of a process.
        shard_sampler: whether workers share the indices among themselves; False if the sampler does that already.
        shard_chunk_size: consecutive indices that go to one worker. With the batch size, batches do not depend on the
            number of workers.
    """

    def __init__(
        self,
        dataset: torchdata.Dataset,
        sampler: Iterable[int],
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ) -> None:
        assert not isinstance(dataset, torchdata.IterableDataset), f"{dataset} is iterable already"
        assert isinstance(sampler, torchdata.Sampler), f"expected a Sampler, got {type(sampler).__name__}"
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        indices = shard_over_workers(self.sampler, self.shard_chunk_size) if self.shard_sampler else self.sampler
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]


class AspectRatioGroupedDataset(torchdata.IterableDataset):
    """Batches of images that are all wider than high, or all not, so that little is padded.

    A batch is given out as soon as one of the two groups is full; what is left at the end is not.

    Args:
        dataset: stream of dicts with "width" and "height".
        batch_size: images per batch.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[dict]]:
        waiting: tuple[list[dict], list[dict]] = ([], [])
        for record in self.dataset:
            group = waiting[aspect_ratio_group(record)]
            group.append(record)
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()


def aspect_ratio_group(record: dict) -> int:
    """0 for an image that is wider than high, else 1."""
    return 0 if record["width"] > record["height"] else 1


def shard_over_workers(items: Iterable[Any], chunk_size: int = 1) -> Iterator[Any]:
    """The part of ``items`` for this worker of a DataLoader: of W workers, worker k gets the chunks k, k + W, ..."""
    info = torchdata.get_worker_info()
    if info is None or info.num_workers == 1:
        yield from items
        return
    iterator = iter(items)
    for number in itertools.count():
        chunk = list(itertools.islice(iterator, chunk_size))
        if not chunk:
            return
        if number % info.num_workers == info.id:
            yield from chunk
