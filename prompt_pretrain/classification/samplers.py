"""Which images a process sees, and in which order: pure functions of a seed, an epoch and a rank."""

import math

import numpy as np
import torch

from prompt_pretrain.classification.randomness import make_generator


def train_steps(length: int, batch_size: int, world: int = 1) -> int:
    """Steps of one epoch over ``length`` images with ``batch_size`` images per process.

    The last incomplete step is dropped, unless the images do not even fill one: then that is the only step.
    """
    return max(length // (batch_size * world), 1) if length else 0


def train_batches(
    length: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1, start_step: int = 0
) -> list[np.ndarray]:
    """Image indices of each step of an epoch for one process.

    All processes share one permutation, drawn from ``seed`` and ``epoch`` alone, cut into steps of
    ``batch_size * world`` images; of each step process ``rank`` takes every ``world``-th image. Hence the images of
    a step do not depend on how many processes share it. (torch's DistributedSampler gives the same order but pads
    the list first, so its number of steps can depend on the number of processes.)

    Args:
        start_step: leave out that many steps, to go on after an interruption.

    Returns:
        One (batch_size,) int64 array per remaining step. When there are fewer images than one step needs, one array
        of ceil(length / world) indices, where the first images of the permutation fill up the last processes.
    """
    if length < 1 or batch_size < 1:
        raise ValueError(f"need at least one image and a batch size of at least 1, got {length} and {batch_size}")
    order = torch.randperm(length, generator=make_generator("order", seed, epoch)).numpy()
    per_step = batch_size * world
    if length < per_step:
        steps = [np.resize(order, math.ceil(length / world) * world)]
    else:
        steps = [order[i * per_step : (i + 1) * per_step] for i in range(length // per_step)]
    return [step[rank::world] for step in steps[start_step:]]


def evaluation_indices(length: int, batch_size: int, world: int, rank: int) -> list[int]:
    """Image indices that process ``rank`` evaluates: a contiguous chunk of whole batches.

    Every process gets ``ceil(length / batch_size / world) * batch_size`` indices; those beyond the end repeat the
    last image. Concatenate the results in rank order and cut them to ``length``.
    """
    share = math.ceil(length / batch_size / world) * batch_size
    return [min(i, length - 1) for i in range(rank * share, (rank + 1) * share)] if length else []


def evaluation_batches(length: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """:func:`evaluation_indices` cut into batches, without the repeated last image.

    Returns:
        int64 arrays of at most ``batch_size`` indices; none for a process whose chunk lies beyond the end. Each image
        occurs in exactly one process, in order.
    """
    share = math.ceil(length / batch_size / world) * batch_size
    stop = min((rank + 1) * share, length)
    return [np.arange(i, min(i + batch_size, stop)) for i in range(rank * share, stop, batch_size)]
