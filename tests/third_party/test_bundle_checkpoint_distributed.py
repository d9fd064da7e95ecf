"""Checkpoints under DistributedDataParallel: all processes end with the same state, or the same error."""

import datetime
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_two_processes(function, folder):
    """What ``function(rank, folder)`` returns in each of two processes."""
    with mp.get_context("fork").Manager() as manager:
        results = manager.dict()
        mp.start_processes(run, args=(function, str(folder), results), nprocs=2, start_method="fork")
        return [results[0], results[1]]


def run(rank, function, folder, results):
    timeout = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    results[rank] = function(rank, folder)
    dist.barrier()
    dist.destroy_process_group()


def make(folder, value):
    model = nn.Linear(2, 2, bias=False)
    nn.init.constant_(model.weight, value)
    return DetectionCheckpointer(DistributedDataParallel(model), folder)


def outcome(checkpointer, call):
    try:
        rest = call(checkpointer)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return checkpointer.model.weight[0, 0].item(), rest


def load_what_only_the_main_process_sees(rank, folder):
    torch.save({"model": {"weight": torch.full((2, 2), 5.0)}, "iteration": 3}, f"{folder}/x.pth")
    dist.barrier()
    path = f"{folder}/x.pth" if rank == 0 else f"{folder}/nowhere.pth"
    return outcome(make(folder, rank), lambda checkpointer: checkpointer.load(path))


def test_a_file_that_only_the_main_process_sees_is_sent(tmp_path):
    assert in_two_processes(load_what_only_the_main_process_sees, tmp_path) == [(5.0, {"iteration": 3})] * 2


def load_what_only_the_other_process_sees(rank, folder):
    torch.save({"model": {}}, f"{folder}/x{rank}.pth")
    dist.barrier()
    path = f"{folder}/x1.pth" if rank == 1 else f"{folder}/nowhere.pth"
    return outcome(make(folder, rank), lambda checkpointer: checkpointer.load(path))


def test_a_file_that_the_main_process_misses_is_an_error_everywhere(tmp_path):
    first, second = in_two_processes(load_what_only_the_other_process_sees, tmp_path)
    assert "not found on the main process" in first
    assert "not found on the main process" in second


def load_damaged(rank, folder):
    if rank == 0:
        with open(f"{folder}/x.pth", "wb"):
            pass
    dist.barrier()
    path = f"{folder}/x.pth" if rank == 0 else f"{folder}/nowhere.pth"
    return outcome(make(folder, rank), lambda checkpointer: checkpointer.load(path))


def test_a_damaged_file_is_an_error_everywhere(tmp_path):
    first, second = in_two_processes(load_damaged, tmp_path)
    assert first == second
    assert "x.pth is cut off or damaged" in first


def save_and_resume(rank, folder):
    for iteration in range(2):
        PeriodicCheckpointer(make(folder, float(iteration)), period=1).step(iteration)
    dist.barrier()
    if rank == 0:
        with open(f"{folder}/model_0000001.pth", "r+b") as file:
            file.truncate(100)
    dist.barrier()
    found = outcome(make(folder, 9.0), lambda checkpointer: checkpointer.resume_or_load("", resume=True))
    dist.barrier()
    if rank == 0:
        os.remove(f"{folder}/model_0000000.pth")
    dist.barrier()
    return found, outcome(make(folder, 9.0), lambda checkpointer: checkpointer.resume_or_load("", resume=True))


def test_resuming_agrees_on_the_last_complete_checkpoint(tmp_path):
    first, second = in_two_processes(save_and_resume, tmp_path)
    assert first == second
    assert first[0] == (0.0, {"iteration": 0})
    assert first[1].startswith("ValueError: no complete checkpoint")
    assert sorted(file.name for file in tmp_path.glob("model_*")) == ["model_0000001.pth"]
