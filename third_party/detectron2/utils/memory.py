"""Getting by when the memory of the GPU runs out."""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["retry_if_cuda_oom"]

_Result = TypeVar("_Result")


def retry_if_cuda_oom(func: Callable[..., _Result]) -> Callable[..., _Result]:
    """A function that, out of GPU memory, retries with an emptied cache, then on CPU copies of its arguments.

    In the last case the result stays on the CPU. ``func`` must be free of side effects, and find out from its arguments
    (tensors, objects with ``device`` and ``to``, lists, tuples and dicts of these) where to compute.
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> _Result:
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        # Outside the except clause: a caught error keeps the frames, and so the tensors, of the failed call alive.
        torch.cuda.empty_cache()
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        name = getattr(func, "__qualname__", repr(func))
        logging.getLogger(__name__).info("Out of GPU memory: running %s on the CPU", name)
        return func(*_to_cpu(args), **_to_cpu(kwargs))

    return wrapped


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory. " in str(error)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to_cpu(item) for item in value)
    device = getattr(value, "device", None)
    on_gpu = isinstance(device, torch.device) and device.type == "cuda"
    return value.to("cpu") if on_gpu and hasattr(value, "to") else value
