"""Batches whose images belong to one group each."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch.utils.data.sampler import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Collects the indices of an endless sampler by group; a group that is full becomes a batch.

    Args:
        sampler: where indices come from.
        group_ids: the group of each index.
        batch_size: indices per batch. Groups that never fill are never given out.
    """

    def __init__(self, sampler: Sampler[int], group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler must be a torch.utils.data.Sampler, got {type(sampler).__name__}")
        self.sampler, self.group_ids, self.batch_size = sampler, group_ids, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = defaultdict(list)
        for index in self.sampler:
            group = waiting[int(self.group_ids[index])]
            group.append(index)
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()

    def __len__(self) -> int:
        raise NotImplementedError("the number of grouped batches depends on the order of the sampler")
