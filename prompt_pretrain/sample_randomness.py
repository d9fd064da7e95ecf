"""Random numbers that belong to a sample, not to the process that happens to make it."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import get_worker_info

__all__ = ["random_numbers_of"]


@contextlib.contextmanager
def random_numbers_of(seed: int, position: int) -> Iterator[None]:
    """Seed NumPy, torch and ``random`` for the sample at ``position`` of the stream of all processes.

    So neither the number of workers nor an interruption changes a sample. In the main process the generators are
    afterwards as before.
    """
    in_worker = get_worker_info() is not None  # nobody else draws there, so the time is saved
    if not in_worker:
        numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()
    words = np.random.SeedSequence((seed % 2**64, position)).generate_state(8, np.uint32)
    np.random.seed(words[:4])
    random.seed(words[4:6].tobytes())
    torch.default_generator.manual_seed(int.from_bytes(words[6:].tobytes(), "little"))
    try:
        yield
    finally:
        if not in_worker:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_rng_state(torch_state)
