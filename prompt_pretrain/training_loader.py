"""An endless loader of training batches that an interrupted training resumes exactly, with any detectron2.

Batches are planned before images are read: which images iteration k gets follows from the seed, the process and k.
"""

import itertools
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from prompt_pretrain import distributed
from prompt_pretrain.classification.decoding import ImageError
from prompt_pretrain.errors import InputError
from prompt_pretrain.sample_randomness import random_numbers_of

__all__ = ["TrainingLoader", "group_indices", "grouped_batches", "share_of_process"]

logger = logging.getLogger(__name__)

_MAX_REPLACEMENTS = 100  # images in a row that cannot be read; then something is wrong with all of them
_NO_SAMPLE = "the mapper gave no sample"
# What Pillow raises for broken files, beside OSError without a number.
_BROKEN_IMAGE = (ImageError, Image.DecompressionBombError, SyntaxError, EOFError, struct.error, zlib.error)


class _Place(NamedTuple):
    """An image to load: its position in the stream of all processes, and its number in the data set."""

    position: int
    image: int


class _Batch(NamedTuple):
    """What a worker hands over."""

    samples: list[Any]
    skipped: list[str]  # reasons, each with the name of an image
    error: InputError | None  # raised in the main process, where its text stays one line


def group_indices(dataset_dicts: Sequence[dict], by_source: bool) -> np.ndarray:
    """(N,) int64: 0 for images that are wider than high, else 1; with ``by_source``, plus 2 times "dataset_source".

    Width and height are those of the record, before any augmentation.

    Raises:
        InputError: a record lacks its size.
    """
    groups = np.empty(len(dataset_dicts), dtype=np.int64)
    for number, record in enumerate(dataset_dicts):
        if "width" not in record or "height" not in record:
            name = record.get("file_name", record.get("image_id", number))
            raise InputError(
                f"image {name} has no width or height, by which batches are grouped; add both to its annotations, or "
                f"set DATALOADER.ASPECT_RATIO_GROUPING to False"
            )
        groups[number] = (2 * record["dataset_source"] if by_source else 0) + (record["width"] <= record["height"])
    return groups


def grouped_batches(indices: Iterator[Any], group_of: Callable[[Any], int], batch_sizes: Sequence[int]) -> Iterator:
    """Collect items by group; a group that reaches its ``batch_sizes[group]`` becomes a batch."""
    waiting: list[list[Any]] = [[] for _ in batch_sizes]
    for item in indices:
        group = group_of(item)
        waiting[group].append(item)
        if len(waiting[group]) == batch_sizes[group]:
            yield waiting[group]
            waiting[group] = []


class TrainingLoader:
    """Batches in the order of a sampler, grouped or not, with a state to resume from.

    Neither the number of workers nor an interruption changes any sample. Images that cannot be read are counted,
    logged and replaced by random ones of the same group, hence of the same data set.

    Args:
        dataset: record by index.
        mapper: record -> sample. None instead of a sample counts as unreadable.
        make_sampler: seed -> endless stream of indices of this process. All processes call it with the same seed, and
            equal seeds give equal streams.
        batch_sizes: images per batch of this process, for each group.
        parts: batches per iteration. With A of them on W processes, the a-th batch is the one that process r + a * W of
            A * W would get (:mod:`prompt_pretrain.accumulation`).
        groups: (N,) group of each image; None when there is only one.
        seed: equal on all processes; None draws one together.
        num_workers: worker processes; 0 loads in this one.
        collate_fn: list of samples -> batch; by default the list itself.
        input_errors: further errors of the mapper that the user can mend; they become an `InputError`.
        may_give_none: the mapper now and then gives None for a sound image: replaced, but neither counted nor logged.
    Attributes:
        skipped: images that could not be read so far.
    """

    def __init__(
        self,
        dataset: Any,
        mapper: Callable[[dict], Any] | None,
        make_sampler: Callable[[int], Sampler[int]],
        batch_sizes: Sequence[int],
        *,
        groups: np.ndarray | None = None,
        parts: int = 1,
        seed: int | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        input_errors: tuple[type[Exception], ...] = (),
        may_give_none: bool = False,
    ) -> None:
        if min(batch_sizes) < 1:
            raise InputError(
                f"batch sizes are {list(batch_sizes)}, expected 1 or more; see SOLVER.IMS_PER_BATCH, of which each of "
                f"the {distributed.world_size()} processes gets its share, and DATALOADER.DATASET_BS"
            )
        self._samples = _Samples(dataset, mapper, groups, input_errors, may_give_none)
        self._make_sampler = make_sampler
        self._batch_sizes = list(batch_sizes)
        self._parts = parts
        self._seed = _shared_random_seed() if seed is None or seed < 0 else int(seed)
        self._num_workers = num_workers
        self._collate = collate_fn
        self._first_batch = 0
        self._batches_done = 0
        self.skipped = 0

    def __iter__(self) -> Iterator[Any]:
        """From the first batch, or from where the loaded state stands."""
        self._batches_done = self._first_batch
        self._samples.seed = self._seed
        # A generator of its own: a loader draws the seed of its workers, which must not shift the numbers that the
        # model draws when a resumed training makes its loader at another moment.
        loader = DataLoader(
            self._samples,
            batch_sampler=_Plan(self._plan),
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(self._seed),
        )
        for batch in loader:
            self._report(batch)
            self._batches_done += 1
            yield batch.samples if self._collate is None else self._collate(batch.samples)

    def state_dict(self) -> dict[str, Any]:
        """What another loader of the same data needs to go on behind the last batch given out; equal on all processes.

        It is a small dict of numbers.
        """
        return {"seed": self._seed, "batches": self._batches_done // self._parts, **self._description()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader of ``state`` was. Takes effect with the next ``iter()``."""
        changed = [
            f"{name} was {state[name]} and is {value}"
            for name, value in self._description().items()
            if state.get(name, value) != value
        ]
        if changed:
            logger.warning("the data cannot go on exactly where it was: %s", "; ".join(changed))
        self._seed, self._first_batch = int(state["seed"]), int(state["batches"]) * self._parts
        self._batches_done = self._first_batch

    def _description(self) -> dict[str, Any]:
        return {
            "images": len(self._samples),
            "batch_sizes": list(self._batch_sizes),
            "processes": distributed.world_size() * self._parts,
        }

    def _plan(self) -> Iterator[list[_Place]]:
        """Batches from the first one that has not been given out; those before it are planned, but read by nobody."""
        rank, world_size = distributed.rank(), distributed.world_size()
        sampler = self._make_sampler(self._seed)
        places = (_Place(number * world_size + rank, int(index)) for number, index in enumerate(sampler))
        # Process r + a * W of A * W takes every A-th place of this one's stream.
        streams = [
            itertools.islice(stream, part, None, self._parts)
            for part, stream in enumerate(itertools.tee(places, self._parts))
        ]
        batches = [
            grouped_batches(s, lambda place: self._samples.group(place.image), self._batch_sizes) for s in streams
        ]
        in_turn = itertools.chain.from_iterable(zip(*batches, strict=False))
        return itertools.islice(in_turn, self._first_batch, None)

    def _report(self, batch: _Batch) -> None:
        for reason in batch.skipped:
            self.skipped += 1
            logger.warning("left out an image, number %d in this process: %s", self.skipped, reason)
        if batch.error is not None:
            raise batch.error


class _Plan:
    """An iterable that starts anew with each ``iter()``, as a DataLoader wants its batch sampler."""

    def __init__(self, make: Callable[[], Iterator[list[_Place]]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[list[_Place]]:
        return self._make()


class _Samples(Dataset):
    """Whole batches of samples by their places."""

    def __init__(
        self,
        dataset: Any,
        mapper: Callable[[dict], Any] | None,
        groups: np.ndarray | None,
        input_errors: tuple[type[Exception], ...],
        may_give_none: bool,
    ) -> None:
        self.dataset, self.mapper, self.groups = dataset, mapper, groups
        self.input_errors, self.may_give_none = input_errors, may_give_none
        self.seed = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def group(self, index: int) -> int:
        return 0 if self.groups is None else int(self.groups[index])

    def __getitems__(self, places: list[_Place]) -> _Batch:
        samples: list[Any] = []
        skipped: list[str] = []
        try:
            for place in places:
                samples.append(self._sample(place, skipped))
        except InputError as error:
            return _Batch([], skipped, error)
        return _Batch(samples, skipped, None)

    def _sample(self, place: _Place, skipped: list[str]) -> Any:
        with random_numbers_of(self.seed, place.position):
            index = place.image
            for attempt in range(_MAX_REPLACEMENTS):
                sample, reason = self._load(index)
                if reason is None:
                    return sample
                if reason or not self.may_give_none:
                    skipped.append(reason or f"{_name_of(self.dataset[index], index)}: {_NO_SAMPLE}")
                index = self._replacement(place, attempt)
        last = skipped[-1] if skipped else _NO_SAMPLE
        raise InputError(f"{_MAX_REPLACEMENTS} images in a row cannot be read, the last one because: {last}")

    def _load(self, index: int) -> tuple[Any, str | None]:
        """(sample, None), or (None, why there is none); without a word where the mapper simply gave none."""
        record = self.dataset[index]
        name = _name_of(record, index)
        try:
            sample = record if self.mapper is None else self.mapper(record)
        except FileNotFoundError as error:
            missing = error.filename or name
            raise InputError(
                f"{missing} does not exist; check the image folder of the data set below DETECTRON2_DATASETS"
            ) from error
        except self.input_errors as error:
            raise InputError(" ".join(str(error).split())) from error
        except _BROKEN_IMAGE as error:
            return None, _with_name(name, error)
        except OSError as error:
            if error.errno is not None:  # the disk's trouble, not the image's
                raise
            return None, _with_name(name, error)
        return sample, "" if sample is None else None

    def _replacement(self, place: _Place, attempt: int) -> int:
        # Of the same group: a batch must not mix data sets with different kinds of annotation.
        generator = np.random.default_rng((self.seed % 2**64, place.position, attempt))
        if self.groups is None:
            return int(generator.integers(len(self)))
        return int(generator.choice(np.flatnonzero(self.groups == self.group(place.image))))


def share_of_process(total_batch_size: int, parts: int = 1) -> int:
    """Images per batch, of SOLVER.IMS_PER_BATCH: each process has ``parts`` batches per iteration.

    Raises:
        InputError: it cannot be shared evenly.
    """
    world_size = distributed.world_size()
    if total_batch_size <= 0 or total_batch_size % (world_size * parts):
        times = f" times SOLVER.ACCUMULATION_STEPS, {world_size} * {parts}" if parts > 1 else f", {world_size}"
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {total_batch_size}; it must be positive and a multiple of the number of "
            f"processes{times}"
        )
    return total_batch_size // (world_size * parts)


def _shared_random_seed() -> int:
    """A number in [0, 2**31) that is the same on every process. All of them have to call it."""
    return int(distributed.gather_objects(int(np.random.randint(2**31)))[0])


def _name_of(record: Any, index: int) -> str:
    if isinstance(record, dict):
        for key in ("file_name", "tar_index", "image_id"):
            if key in record:
                return str(record[key]) if key == "file_name" else f"image with {key} {record[key]}"
    return f"image {index}"


def _with_name(name: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if name in text else f"{name}: {text}"


def _as_it_is(batch: Any) -> Any:  # a _Batch, which is what __getitems__ gives
    return batch
