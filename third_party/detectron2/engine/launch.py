"""Starting the processes of a distributed training, or joining those that ``torchrun`` started."""

import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run ``main_func(*args)`` in ``num_gpus_per_machine`` processes on this machine; call it on every machine.

    The processes form a group over NCCL, or over Gloo where there is no CUDA. One process in all runs right here,
    without a group. Under ``torchrun`` nothing is started: each of its processes joins the group and runs the function.

    Args:
        num_gpus_per_machine: processes per machine, also without GPUs.
        num_machines: number of machines.
        machine_rank: index of this machine.
        dist_url: where the processes meet, such as "tcp://10.0.0.1:23456"; "auto" finds a free local port.
        timeout: how long the processes wait for each other.
    Raises:
        ValueError: the arguments contradict each other or the processes that ``torchrun`` started.
        RuntimeError: one CUDA device per process is asked for, and there are fewer.
    """
    if all(name in os.environ for name in _TORCHRUN_VARIABLES):
        _join_torchrun(main_func, num_gpus_per_machine, num_machines, args, timeout)
        return
    if num_gpus_per_machine < 1 or not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"launch needs at least one process per machine and a machine rank below the number of machines, got "
            f"{num_gpus_per_machine} processes, machine rank {machine_rank} of {num_machines} machines"
        )
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    _check_devices(num_gpus_per_machine)
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError("dist_url 'auto' works on one machine only; give tcp://ADDRESS:PORT of machine 0")
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if not dist_url:
        raise ValueError(f"{world_size} processes need a place to meet: give dist_url tcp://ADDRESS:PORT or 'auto'")
    if num_machines > 1 and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            "file:// is not a reliable init_method in multi-machine jobs. Prefer tcp://"
        )
    mp.start_processes(
        _run_worker,
        nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
        daemon=False,  # so that workers may start processes, such as those of data loaders
        start_method="spawn",  # CUDA does not work in forked processes
    )


def _run_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_local: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
    timeout: timedelta,
) -> None:
    """What each process started by ``launch`` does."""
    rank = machine_rank * num_local + local_rank
    _run_in_group(main_func, args, dist_url, rank, world_size, local_rank, num_local, timeout)
    # Only after success: with a process gone, leaving in order would wait for it.
    dist.destroy_process_group()


def _join_torchrun(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int,
    args: tuple[Any, ...],
    timeout: timedelta,
) -> None:
    """Run as the process that the environment of ``torchrun`` describes."""
    rank, world_size, local_rank, num_local = (int(os.environ[name]) for name in _TORCHRUN_VARIABLES[:4])
    for what, given, started in (
        ("--num-gpus", num_gpus_per_machine, num_local),
        ("--num-machines", num_machines, world_size // num_local),
    ):
        if given not in (1, started):  # 1 is the default, so it says nothing
            raise ValueError(f"{what} is {given} but torchrun started {started}; leave it out, torchrun decides")
    if world_size == 1:
        main_func(*args)
        return
    _check_devices(num_local)
    _run_in_group(main_func, args, "env://", rank, world_size, local_rank, num_local, timeout)


def _run_in_group(
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    dist_url: str,
    rank: int,
    world_size: int,
    local_rank: int,
    num_local: int,
    timeout: timedelta,
) -> None:
    """Join the group, unless an earlier launch under ``torchrun`` has done so, and run the function."""
    has_gpu = torch.cuda.is_available()
    if dist.is_initialized():
        comm.synchronize()
        main_func(*args)
        return
    # After a restart, the store of torchrun still holds the addresses of the processes before: look up new ones.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if dist_url == "env://" else "0"
    try:
        store = None if attempt == "0" else dist.PrefixStore(f"attempt {attempt}", next(dist.rendezvous(dist_url))[0])
        dist.init_process_group(
            backend="NCCL" if has_gpu else "GLOO",
            init_method=dist_url if store is None else None,
            store=store,
            world_size=world_size,
            rank=rank,
            timeout=timeout,
        )
    except Exception:
        logging.getLogger(__name__).error(f"Process group URL: {dist_url}")
        raise
    comm.create_local_process_group(num_local)
    if has_gpu:
        torch.cuda.set_device(local_rank)
    # A process that went ahead could time out while others still load libraries or build CUDA contexts.
    comm.synchronize()
    main_func(*args)


def _check_devices(num_local: int) -> None:
    if torch.cuda.is_available() and num_local > torch.cuda.device_count():
        raise RuntimeError(
            f"{num_local} processes asked for on this machine, which has {torch.cuda.device_count()} GPUs: "
            "set --num-gpus to at most that, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on the CPU"
        )


def _find_free_port() -> int:
    """A port that is free now; another program may still take it before it is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
