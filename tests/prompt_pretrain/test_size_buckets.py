"""Batches by size: whole, complete, and in the order of the inputs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from prompt_pretrain.size_buckets import SizeBuckets


@dataclass(frozen=True)
class Result:
    index: int


@pytest.mark.parametrize("num_sizes", [1, 3, 200])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_input_once_in_order_and_batches_of_one_size(num_sizes: int, batch_size: int) -> None:
    draw = random.Random(0)
    sizes = [(draw.randrange(num_sizes), 1) for _ in range(150)]
    batches: list[list[int]] = []

    def run(entries: Sequence[dict[str, Any]]) -> list[Result]:
        batches.append([entry["index"] for entry in entries])
        return [Result(entry["index"]) for entry in entries]

    buckets = SizeBuckets(run, batch_size)
    found, waiting = [], 0
    for number, size in enumerate(sizes):
        found += [result.index for result in buckets.add({"index": number}, size)]
        waiting = max(waiting, number + 1 - len(found))
    found += [result.index for result in buckets.flush()]
    assert found == list(range(150))
    assert sorted(index for batch in batches for index in batch) == found
    assert all(len({sizes[index] for index in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    assert waiting <= 8 * batch_size  # memory is bounded however many sizes there are
    if num_sizes == 1:
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
