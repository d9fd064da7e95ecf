"""Other processes for tests: forked from a server that has the imports done, never from the tests' own process."""

import multiprocessing
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["prompt_pretrain.pretraining_setup", "pytest", "detection.training", "segmentation.training"]
)


def start(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """Run a module-level ``function`` in a process of its own."""
    process = _context.Process(target=_single_threaded, args=(function, *args))
    process.start()
    return process


def run(function: Callable[..., Any], *args: Any) -> int:
    """Exit status of ``function``; a negative one is the signal that ended it."""
    process = start(function, *args)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_ranks(function: Callable[..., Any], world: int, *args: Any) -> None:
    """Run ``function(rank, *args)`` in ``world`` processes of one gloo group."""
    assert exit_codes(start_ranks(function, world, *args)) == [0] * world


def start_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[BaseProcess]:
    """The processes of `run_ranks`, at work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [start(_in_group, function, rank, world, port, *args) for rank in range(world)]


def exit_codes(processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _single_threaded(function: Callable[..., Any], *args: Any) -> None:
    import torch

    torch.set_num_threads(1)
    function(*args)


def _in_group(function: Callable[..., Any], rank: int, world: int, port: int, *args: Any) -> None:
    import os

    from prompt_pretrain import distributed

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.initialize("cpu")
    function(rank, *args)
    distributed.shutdown()
