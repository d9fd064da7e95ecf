"""Communication between the processes of a training; every function also works without any process group."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

# Communication object of the processes on this machine; set by create_local_process_group.
_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None
_MISSING_LOCAL_GROUP = (
    "Local process group is not created! Start processes with detectron2.engine.launch, "
    "or call detectron2.utils.comm.create_local_process_group"
)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Index of this process among all; 0 without a process group."""
    return dist.get_rank() if _is_distributed() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Form a group of the processes of each machine, which ``get_local_rank`` and ``get_local_size`` count in.

    To be called once, by every process. Ranks are expected to be numbered machine by machine.

    Raises:
        ValueError: the number of processes is no multiple of ``num_workers_per_machine``.
    """
    global _LOCAL_PROCESS_GROUP
    if _LOCAL_PROCESS_GROUP is not None:
        raise AssertionError("the local process group has already been created")
    world_size = get_world_size()
    if world_size % num_workers_per_machine:
        raise ValueError(f"{world_size} processes cannot be {num_workers_per_machine} on each machine")
    for first in range(0, world_size, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)  # every process takes part in making every group
        if get_rank() in ranks:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of the processes on this machine."""
    if _LOCAL_PROCESS_GROUP is None:
        raise AssertionError(_MISSING_LOCAL_GROUP)
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Index of this process on its machine; 0 without a process group."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine; 1 without a process group."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def is_main_process() -> bool:
    """Whether this is the process that writes files and logs."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process has come here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # NCCL would guess the device from the rank
    else:
        dist.barrier()


def _get_global_gloo_group() -> dist.ProcessGroup:
    """All processes over a backend that sends CPU data."""
    return _gloo_group_of(dist.group.WORLD) if dist.get_backend() == dist.Backend.NCCL else dist.group.WORLD


@functools.lru_cache(maxsize=1)  # every group costs connections
def _gloo_group_of(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every process' ``data``, any picklable object, in the order of ranks, on every process."""
    if get_world_size() == 1:
        return [data]
    group = group or _get_global_gloo_group()
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every process' ``data``, any picklable object, in the order of ranks, on rank ``dst``; [] on the others."""
    if get_world_size() == 1:
        return [data]
    group = group or _get_global_gloo_group()
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    if dist.get_rank() != dst:
        dist.gather_object(data, None, dst=dst, group=group)
        return []
    gathered: list[Any] = [None] * size
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered


def shared_random_seed() -> int:
    """The same random number in [0, 2**31) on every process, drawn from NumPy's state on rank 0.

    All processes have to call it.
    """
    return all_gather(int(np.random.randint(2**31)))[0]


def reduce_dict(input_dict: dict[str, Tensor], average: bool = True) -> dict[str, Tensor]:
    """Sum or average scalar tensors over the processes, name by name.

    Every process must have the same names. Only rank 0 gets the result; on the others the values are undefined. One
    process alone gets ``input_dict`` itself back.
    """
    world_size = get_world_size()
    if world_size < 2:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)  # processes may have filled their dicts in different orders
        if not names:
            return {}
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and dist.get_rank() == 0:
            values /= world_size
        return dict(zip(names, values, strict=True))
