"""Communication, without a process group and between two processes."""

import datetime
import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm


def test_alone_everything_is_local():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    assert comm.synchronize() is None
    assert comm.all_gather({"a": 1}) == [{"a": 1}]
    assert comm.gather("x") == ["x"]
    losses = {"a": torch.ones(())}
    assert comm.reduce_dict(losses) is losses


def test_shared_seed_follows_numpy_alone():
    np.random.seed(3)
    first = comm.shared_random_seed()
    np.random.seed(3)
    assert comm.shared_random_seed() == first
    assert 0 <= first < 2**31


def between_two(rank, store, results):
    timeout = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    with pytest.raises(AssertionError):
        comm.get_local_rank()
    comm.create_local_process_group(1)
    comm.synchronize()
    np.random.seed(rank)
    losses = {"b": torch.tensor(2.0 * rank), "a": torch.tensor(1.0 + rank)}
    if rank:
        losses = dict(reversed(losses.items()))
    found = {
        "place": (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()),
        "main": comm.is_main_process(),
        "all": comm.all_gather({"rank": rank, "data": [rank] * (rank + 1)}),
        "to 0": comm.gather(rank),
        "to 1": comm.gather(f"rank {rank}", dst=1),
        "seed": comm.shared_random_seed(),
    }
    mean = comm.reduce_dict(losses)
    total = comm.reduce_dict(losses, average=False)
    if rank == 0:
        found["mean"] = {name: value.item() for name, value in mean.items()}
        found["sum"] = {name: value.item() for name, value in total.items()}
    results[rank] = found
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes(tmp_path):
    with mp.get_context("fork").Manager() as manager:
        results = manager.dict()
        mp.start_processes(between_two, args=(str(tmp_path / "store"), results), nprocs=2, start_method="fork")
        first, second = results[0], results[1]
    assert first["place"] == (2, 0, 0, 1)
    assert second["place"] == (2, 1, 0, 1)
    assert (first["main"], second["main"]) == (True, False)
    assert first["all"] == second["all"] == [{"rank": 0, "data": [0]}, {"rank": 1, "data": [1, 1]}]
    assert (first["to 0"], second["to 0"]) == ([0, 1], [])
    assert (first["to 1"], second["to 1"]) == ([], ["rank 0", "rank 1"])
    np.random.seed(0)
    assert first["seed"] == second["seed"] == np.random.randint(2**31)
    assert first["mean"] == {"a": 1.5, "b": 1.0}
    assert first["sum"] == {"a": 3.0, "b": 2.0}
    assert list(first["mean"]) == ["a", "b"]


def test_seeding_makes_all_generators_repeat():
    from detectron2.utils.env import seed_all_rng

    drawn = []
    for _ in range(2):
        seed_all_rng(7)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    state = random.getstate()
    seed_all_rng()
    assert random.getstate() != state
