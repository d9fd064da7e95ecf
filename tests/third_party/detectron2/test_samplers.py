"""Samplers over several processes."""

import itertools

import numpy as np
import pytest
import torch

from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm


def take(sampler, count: int) -> list[int]:
    return list(itertools.islice(sampler, count))


def make_for_rank(monkeypatch, rank: int, world_size: int, make):
    with monkeypatch.context() as patch:
        patch.setattr(comm, "get_rank", lambda: rank)
        patch.setattr(comm, "get_world_size", lambda: world_size)
        return make()


def test_ranks_share_one_stream(monkeypatch):
    for make in (
        lambda: TrainingSampler(11, seed=3),
        lambda: RandomSubsetTrainingSampler(40, 0.3, seed_shuffle=3, seed_subset=4),
        lambda: RepeatFactorTrainingSampler(torch.rand(11) + 1, seed=3),
    ):
        torch.manual_seed(0)
        whole = take(make(), 60)
        for rank in range(3):
            torch.manual_seed(0)
            assert take(make_for_rank(monkeypatch, rank, 3, make), 20) == whole[rank::3]


def test_each_pass_holds_every_index_once():
    stream = take(TrainingSampler(9, seed=1), 27)
    assert [sorted(stream[start : start + 9]) for start in (0, 9, 18)] == [list(range(9))] * 3
    assert stream[:9] != stream[9:18]


def test_unseeded_sampler_draws_from_numpy():
    np.random.seed(0)
    first = take(TrainingSampler(50), 50)
    assert take(TrainingSampler(50), 50) != first
    np.random.seed(0)
    assert take(TrainingSampler(50), 50) == first


def test_iterating_again_gives_the_same_stream():
    sampler = TrainingSampler(7, seed=5)
    assert take(sampler, 20) == take(sampler, 20)


def test_training_needs_images():
    with pytest.raises(TypeError):
        TrainingSampler(3.0)
    with pytest.raises(ValueError):
        TrainingSampler(0)


def test_fractional_repeats_come_by_chance():
    factors = torch.tensor([1.0, 2.5, 1.25])
    stream = take(RepeatFactorTrainingSampler(factors, seed=0), 4750)
    share = np.bincount(stream) / len(stream)
    np.testing.assert_allclose(share, factors / factors.sum(), atol=0.02)


def test_repeat_factors_count_images_not_instances():
    dicts = [{"annotations": [{"category_id": 0}] * 5}, {"annotations": []}] + [
        {"annotations": [{"category_id": 1}]}
    ] * 2
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.5)
    np.testing.assert_allclose(factors, [2**0.5, 1, 1, 1], rtol=1e-6)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.5, sqrt=False)
    np.testing.assert_allclose(factors, [2, 1, 1, 1], rtol=1e-6)


def test_inference_covers_everything_once(monkeypatch):
    for size, world_size in ((10, 3), (3, 5), (8, 8)):
        shards = [
            list(make_for_rank(monkeypatch, rank, world_size, lambda size=size: InferenceSampler(size)))
            for rank in range(world_size)
        ]
        assert list(itertools.chain(*shards)) == list(range(size))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert len(InferenceSampler(8)) == 8


def test_grouped_batches_hold_one_group():
    groups = [index % 2 for index in range(20)]
    batches = take(GroupedBatchSampler(TrainingSampler(20, seed=0), groups, 4), 12)
    for batch in batches:
        assert len(batch) == 4
        assert len({groups[index] for index in batch}) == 1
