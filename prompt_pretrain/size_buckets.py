"""Batches of images that need the same padding, with results in the order of the inputs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Indexed", "SizeBuckets"]
_WINDOW = 8  # batches' worth of images that may wait for others of their size


class Indexed(Protocol):
    """A result that knows its input."""

    @property
    def index(self) -> int:
        """Position among the inputs."""


_Result = TypeVar("_Result", bound=Indexed)


class SizeBuckets(Generic[_Result]):
    """Collects inputs by size and runs them in batches.

    A model pads the images of a batch to a common size, which changes the features at their borders a little. Where all
    images of a batch need the same padding anyway, each gets exactly the result that it would get alone.

    Args:
        run: gives one result per entry of a batch, with its "index" as ``index``.
        batch_size: entries per batch at most.
    """

    def __init__(self, run: Callable[[Sequence[dict[str, Any]]], list[_Result]], batch_size: int) -> None:
        self._run, self._batch_size = run, batch_size
        self._waiting: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self._order: dict[int, _Result | None] = {}  # by index, in order of arrival

    def add(self, entry: dict[str, Any], size: tuple[int, int]) -> Iterator[_Result]:
        """Take an entry with an "index"; yields the results that are due.

        Args:
            size: what decides the padding.
        """
        self._order[entry["index"]] = None
        bucket = self._waiting.setdefault(size, [])
        bucket.append(entry)
        if len(bucket) == self._batch_size:
            self._run_bucket(size)
        elif len(self._order) >= _WINDOW * self._batch_size:
            self._run_oldest()
        yield from self._due()

    def flush(self) -> Iterator[_Result]:
        """Run what still waits."""
        while self._waiting:
            self._run_oldest()
            yield from self._due()

    def _run_oldest(self) -> None:
        first = next(index for index, result in self._order.items() if result is None)
        size = next(size for size, bucket in self._waiting.items() if any(each["index"] == first for each in bucket))
        self._run_bucket(size)

    def _run_bucket(self, size: tuple[int, int]) -> None:
        for result in self._run(self._waiting.pop(size)):
            self._order[result.index] = result

    def _due(self) -> Iterator[_Result]:
        while self._order:
            index, result = next(iter(self._order.items()))
            if result is None:
                return
            del self._order[index]
            yield result
