"""torch.distributed for code that also runs as one process without a process group."""

import functools
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def initialize(device_type: str = "auto") -> torch.device:
    """Join the process group that ``torchrun`` describes in the environment; a no-op without one.

    Args:
        device_type: ``auto`` (CUDA where available), ``cuda`` or ``cpu``.
    Returns:
        The device of this process: ``cuda:<LOCAL_RANK>`` or the CPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    use_cuda = device_type == "cuda" or (device_type == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if "RANK" in os.environ and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if is_restarted():
            # torchrun's store still holds the addresses of the processes before: look up those of this attempt.
            store, own_rank, size = next(dist.rendezvous("env://"))
            store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            dist.init_process_group(backend, store=store, rank=own_rank, world_size=size)
        else:
            dist.init_process_group(backend)
    return device


def is_restarted() -> bool:
    """Whether ``torchrun --max-restarts`` has started this process in place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if _active():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    return dist.get_world_size() if _active() else 1


def is_main_process() -> bool:
    return rank() == 0


def barrier() -> None:
    if _active():
        dist.barrier()


def average_(tensor: Tensor) -> Tensor:
    """Replace ``tensor`` by its mean over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def sum_(tensor: Tensor) -> Tensor:
    """Replace ``tensor`` by its sum over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_(tensor: Tensor, source: int = 0) -> Tensor:
    """Replace ``tensor`` by the one of process ``source``, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, source)
    return tensor


def broadcast_object(value: object, source: int = 0) -> object:
    """Process ``source``'s ``value`` on every process (pickled between our own processes)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def gather_objects(value: object) -> list:
    """The values of all processes in rank order, on every process."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_process(value: bool) -> bool:
    """Whether ``value`` is true on any process. Cheap enough for every step: one number over gloo, from no device."""
    if world_size() == 1:
        return value
    flag = torch.tensor(int(value))
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=_gloo_group(dist.group.WORLD))
    return bool(flag)


@functools.lru_cache(maxsize=1)  # every group costs connections
def _gloo_group(world: Any) -> Any:
    """The processes of ``world`` over a backend that sends numbers from the CPU."""
    return world if dist.get_backend(world) == dist.Backend.GLOO else dist.new_group(backend="gloo")


def shard_bounds(length: int, index: int | None = None, parts: int | None = None) -> tuple[int, int]:
    """First and one-past-last row of the contiguous shard of process ``index``; sizes differ by at most one."""
    index = rank() if index is None else index
    parts = world_size() if parts is None else parts
    return length * index // parts, length * (index + 1) // parts


def gather_rows(shard: Tensor, length: int) -> Tensor:
    """Concatenate every process's rows (cut by :func:`shard_bounds`) in rank order, differentiably.

    Backward sums over processes the gradient of each row and hands every process the part of its own shard. With the
    gradients of the shared parameters averaged over processes afterwards, the result is the gradient of the mean of
    the processes' losses, exactly.
    """
    if world_size() == 1:
        return shard
    return _GatherRows.apply(shard, length)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, length: int) -> Tensor:
        ctx.length = length
        sizes = [stop - start for start, stop in (shard_bounds(length, r) for r in range(world_size()))]
        # Padded to one size: gloo's all_gather wants equal shapes.
        padded = shard.new_zeros(max(sizes), *shard.shape[1:])
        padded[: len(shard)] = shard
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        start, stop = shard_bounds(ctx.length)
        return grad[start:stop], None


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
