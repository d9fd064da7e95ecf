import numpy as np
import pytest
import torch

from prompt_pretrain.classification.samplers import (
    evaluation_batches,
    evaluation_indices,
    train_batches,
    train_steps,
)


def test_an_epoch_visits_every_image_at_most_once_and_drops_the_incomplete_step():
    batches = train_batches(103, 10, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [10] * train_steps(103, 10)
    assert len(batches) == 10
    assert len(np.unique(np.concatenate(batches))) == 100


def test_order_depends_on_seed_and_epoch_only():
    first = np.concatenate(train_batches(50, 5, seed=1, epoch=3))
    torch.manual_seed(0)
    torch.rand(3)
    assert np.array_equal(first, np.concatenate(train_batches(50, 5, seed=1, epoch=3)))
    assert not np.array_equal(first, np.concatenate(train_batches(50, 5, seed=1, epoch=4)))
    assert not np.array_equal(first, np.concatenate(train_batches(50, 5, seed=2, epoch=3)))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("length", [72, 73, 77, 5])
def test_processes_share_the_steps_of_a_single_one(world, length):
    alone = train_batches(length, 6 * world, seed=4, epoch=1)
    shares = [train_batches(length, 6, seed=4, epoch=1, rank=rank, world=world) for rank in range(world)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, batch in enumerate(alone):
        together = np.concatenate([share[step] for share in shares])
        assert set(together) == set(batch)
        if length >= 6 * world:
            assert len(together) == len(batch)
        assert len({len(share[step]) for share in shares}) == 1


def test_fewer_images_than_a_batch_make_one_step():
    (batch,) = train_batches(3, 32, seed=0, epoch=0)
    assert sorted(batch) == [0, 1, 2]
    assert train_steps(3, 32) == 1


def test_an_epoch_can_be_entered_in_the_middle():
    whole = train_batches(40, 4, seed=0, epoch=0)
    rest = train_batches(40, 4, seed=0, epoch=0, start_step=7)
    assert [b.tolist() for b in rest] == [b.tolist() for b in whole[7:]]


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="at least one image"):
        train_batches(0, 4, seed=0, epoch=0)


def test_evaluation_shares_repeat_the_last_image():
    assert [evaluation_indices(5, 4, 2, rank) for rank in range(2)] == [[0, 1, 2, 3], [4, 4, 4, 4]]
    assert evaluation_indices(0, 4, 1, 0) == []


@pytest.mark.parametrize(("length", "batch_size", "world"), [(23, 4, 3), (5, 4, 4), (8, 3, 1)])
def test_evaluation_batches_hold_every_image_once_in_order(length, batch_size, world):
    shares = [evaluation_batches(length, batch_size, rank=rank, world=world) for rank in range(world)]
    batches = [batch.tolist() for share in shares for batch in share]
    assert [index for batch in batches for index in batch] == list(range(length))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
