"""Weights without a download: each entry of a state dict gets values that follow from its name and shape alone.

Two implementations of one architecture with the same parameter names become identical by ``fill(model)`` on both
sides. The golden files of this folder were recorded with reference implementations filled in exactly this way, so the
numbers below must never change.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def value(name: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """The float32 value of the entry ``name``; NumPy keeps MT19937 streams frozen, so it is the same everywhere."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    normal = np.asarray(generator.standard_normal(tuple(shape)))
    if name.endswith("running_var"):
        filled = 0.5 + np.abs(normal)  # variances are positive
    elif name.endswith("running_mean"):
        filled = 0.1 * normal
    elif len(shape) == 0:
        filled = 1.0 + 0.1 * normal
    elif len(shape) == 1:
        filled = 1.0 + 0.1 * normal if name.endswith("weight") else 0.05 * normal  # gains near 1, biases near 0
    else:
        filled = normal * np.sqrt(2.0 / np.prod(shape[1:]))  # keeps activations at unit scale
    return torch.from_numpy(np.asarray(filled, dtype=np.float32))


@torch.no_grad()
def fill(module: nn.Module, skip: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Fill every floating-point entry of ``module.state_dict()`` in place; returns the names filled.

    An entry whose name holds one of the substrings in ``skip`` keeps its value.
    """
    filled = []
    for name, entry in sorted(module.state_dict().items()):
        if entry.is_floating_point() and not any(part in name for part in skip):
            entry.copy_(value(name, entry.shape, seed).to(entry.dtype))
            filled.append(name)
    return filled
