"""The endless loader of training batches: what iteration k gets depends on the seed and on k only."""

import contextlib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata

from detectron2.data.common import MapDataset, aspect_ratio_group, shard_over_workers
from detectron2.utils import comm

__all__ = ["TrainingLoader", "as_it_is", "worker_init_reset_seed"]


class TrainingLoader:
    """Batches of samples in the order of a sampler, with a state that an interrupted training resumes from.

    The random numbers of a sample are seeded by the loader's seed and by the sample's position in the stream of all
    processes. So neither the number of workers nor that of processes, nor an interruption, changes any sample.

    Args:
        dataset: samples by index.
        sampler: indices for this process, equal on every iteration over it.
        batch_size: samples per batch of this process.
        aspect_ratio_grouping: only batches whose images are all wider than high, or all not.
        seed: equal on all processes; None draws one together.
        collate_fn: list of samples -> batch.
        drop_last: leave out an incomplete last batch, should the sampler end.
        loader_options: further arguments of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        dataset: torchdata.Dataset,
        sampler: torchdata.Sampler,
        batch_size: int,
        *,
        aspect_ratio_grouping: bool,
        seed: int | None,
        collate_fn: Callable[[list[Any]], Any],
        drop_last: bool = True,
        **loader_options: Any,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.aspect_ratio_grouping = aspect_ratio_grouping
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self._seed = comm.shared_random_seed() if seed is None else seed
        self._loader_options = loader_options
        self._first_batch = 0
        self._batches_done = 0

    def __iter__(self) -> Iterator[Any]:
        """From the first batch, or from where the loaded state stands."""
        self._batches_done = self._first_batch
        batches = self._grouped_batches() if self.aspect_ratio_grouping else self._plain_batches()
        for batch in batches:
            self._batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """What a new loader of the same data needs to go on behind the last batch given out; equal on all processes."""
        state: dict[str, Any] = {"seed": self._seed, "batches": self._batches_done}
        if hasattr(self.sampler, "state_dict"):
            state["sampler"] = self.sampler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader of ``state`` was. Takes effect with the next ``iter()``."""
        self._seed, self._first_batch = state["seed"], state["batches"]
        self._batches_done = self._first_batch
        if "sampler" in state and hasattr(self.sampler, "load_state_dict"):
            self.sampler.load_state_dict(state["sampler"])

    def _plain_batches(self) -> Iterator[Any]:
        # A worker builds whole batches, so it gets that many consecutive samples at a time.
        stream = _SampleStream(self.dataset, self.sampler, self._seed, self.batch_size)
        stream.first = self._first_batch * self.batch_size
        yield from self._make_loader(
            stream, batch_size=self.batch_size, drop_last=self.drop_last, collate_fn=self.collate_fn
        )

    def _grouped_batches(self) -> Iterator[Any]:
        # Workers give single samples in turn, which keeps the order of the sampler.
        stream = _SampleStream(self.dataset, self.sampler, self._seed, 1, with_group=True)
        stream.first, stream.waiting = self._replay_grouping(stream)
        options: dict[str, Any] = {"batch_size": None, "collate_fn": as_it_is}
        if self._loader_options.get("num_workers", 0) > 0 and "prefetch_factor" not in self._loader_options:
            options["prefetch_factor"] = 2 * self.batch_size  # counted in samples; as much as without grouping
        loader = self._make_loader(stream, **options)
        for batch in self._group(iter(loader)):
            yield self.collate_fn([sample for _, sample in batch])

    def _make_loader(self, stream: "_SampleStream", **options: Any) -> torchdata.DataLoader:
        # A generator of its own: a loader draws the seed of its workers, which must not shift the numbers that the
        # model draws when a resumed training makes its loader at another moment.
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        return torchdata.DataLoader(stream, **{"generator": generator, **self._loader_options, **options})

    def _replay_grouping(self, stream: "_SampleStream") -> tuple[int, list[tuple[int, int]]]:
        """Where to go on after ``_batches_done`` batches: (numbers consumed, what waits in groups), mapping nothing."""
        if self._first_batch == 0:
            return 0, []
        consumed = 0
        waiting: dict[int, tuple[int, int]] = {}

        def positions() -> Iterator[tuple[int, tuple[int, int]]]:
            nonlocal consumed
            for consumed, (position, index) in enumerate(stream.positions(), start=1):  # noqa: B007
                waiting[position] = (position, index)
                yield stream.group(index), (position, index)

        for batch in itertools.islice(self._group(positions()), self._first_batch):
            for _, (position, _index) in batch:
                del waiting[position]
        return consumed, list(waiting.values())

    def _group(self, samples: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
        groups: dict[int, list[tuple[int, Any]]] = {}
        for sample in samples:
            group = groups.setdefault(sample[0], [])
            group.append(sample)
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()


class _SampleStream(torchdata.IterableDataset):
    """Samples in the order of the sampler, each made with random numbers of its own.

    With ``with_group``, pairs of the aspect-ratio group and the sample.
    """

    def __init__(
        self, dataset: Any, sampler: torchdata.Sampler, seed: int, chunk_size: int, with_group: bool = False
    ) -> None:
        self.dataset, self.sampler, self.seed, self.chunk_size = dataset, sampler, seed, chunk_size
        self.with_group = with_group
        self.first = 0
        self.waiting: list[tuple[int, int]] = []
        # Of the stream of all processes, this one has the positions rank, rank + world size, ...
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def positions(self) -> Iterator[tuple[int, int]]:
        """(position in the stream of all processes, index) from the beginning."""
        for number, index in enumerate(self.sampler):
            yield number * self._world_size + self._rank, int(index)

    def group(self, index: int, sample: Any = None) -> int:
        """Aspect-ratio group by the size in the annotations, or where there is none by the sample's."""
        records = self.dataset._dataset if isinstance(self.dataset, MapDataset) else self.dataset
        record = records[index]
        if isinstance(record, dict) and "width" in record and "height" in record:
            return aspect_ratio_group(record)
        return aspect_ratio_group(self.dataset[index] if sample is None else sample)

    def __iter__(self) -> Iterator[Any]:
        rest = itertools.islice(self.positions(), self.first, None)
        for position, index in shard_over_workers(itertools.chain(self.waiting, rest), self.chunk_size):
            with _random_numbers_of(self.seed, position):
                sample = self.dataset[index]
            yield (self.group(index, sample), sample) if self.with_group else sample


@contextlib.contextmanager
def _random_numbers_of(seed: int, position: int) -> Iterator[None]:
    """Seed all global generators for one sample; in the main process they are afterwards as before."""
    in_worker = torchdata.get_worker_info() is not None  # nobody else draws there, so the time is saved
    if not in_worker:
        numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()
    # A hash: neighbouring seeds of one generator can give similar numbers.
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=12).digest()
    np.random.seed(int.from_bytes(digest[:4], "little"))
    random.seed(digest[4:8])
    torch.default_generator.manual_seed(int.from_bytes(digest[8:], "little"))
    try:
        yield
    finally:
        if not in_worker:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_rng_state(torch_state)


def as_it_is(sample: Any) -> Any:
    """The sample. Without a collate function, a DataLoader turns the arrays in it into tensors."""
    return sample


def worker_init_reset_seed(worker_id: int) -> None:
    """Give each worker process random numbers of its own in NumPy, torch and ``random``."""
    seed = torch.initial_seed() % 2**31 + worker_id
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
