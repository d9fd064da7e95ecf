"""Gradient accumulation: each process does, one after the other, the work of several.

With A parts a run on W processes is one on A * W processes, part a of process r being process r + a * W of it: the same
images together, the same augmentations and draws, normalisers averaged over all parts. Results are equal up to the
order of additions, memory is that of a part.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from prompt_pretrain import distributed
from prompt_pretrain.errors import InputError
from prompt_pretrain.sample_randomness import random_numbers_of

__all__ = ["Counter", "accumulate_gradients", "check_accumulation", "number_of_parts"]

# Added to the iteration, so that a training step never draws the same numbers as the augmentation of a sample.
_STEP_OFFSET = 2**40


class Counter(Protocol):
    """What a loss divides by, known from the ground truth alone, where that is a mean over processes."""

    def count(self, batch: Sequence[Mapping[str, Any]]) -> Tensor:
        """(k,) float32 counts of a batch."""
        ...

    def set_means(self, means: Tensor | None) -> None:
        """Let the loss divide by these means (k,); None: by its own, averaged over processes."""
        ...


def number_of_parts(cfg: Any) -> int:
    """SOLVER.ACCUMULATION_STEPS, 1 for configs of others without this key.

    Raises:
        InputError: it is less than 1.
    """
    parts = cfg.SOLVER.get("ACCUMULATION_STEPS", 1)
    if parts < 1:
        raise InputError(f"SOLVER.ACCUMULATION_STEPS is {parts}, expected 1 or more")
    return parts


def check_accumulation(model: nn.Module) -> None:
    """Refuse what parts cannot do like processes.

    Raises:
        InputError: a batch normalisation that learns: its statistics would be those of a part.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                f"SOLVER.ACCUMULATION_STEPS is more than 1, but {name} normalises by the statistics of its batch, "
                "which would be those of a part; use FrozenBN or GN, or more processes"
            )


def accumulate_gradients(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    seed: int,
    iteration: int,
    counters: Sequence[Counter] = (),
    backward: Callable[[Tensor], None] = Tensor.backward,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Tensor]:
    """Add to the gradients those of the mean loss of ``batches``, one after the other; a collective call.

    Args:
        model: batch -> losses by name, or one loss; in DistributedDataParallel if there are several processes.
        batches: of this process.
        seed, iteration: random numbers follow from them and from the number of process and part.
        counters: of the losses that divide by a mean over processes.
        backward: takes the loss.
    Returns:
        The means of the losses, detached.
    """
    parts, world = len(batches), distributed.world_size()
    losses: dict[str, Tensor] = {}
    _set_means(counters, batches)
    try:
        for number, batch in enumerate(batches):
            last = number == parts - 1
            position = _STEP_OFFSET + iteration * world * parts + distributed.rank() + number * world
            # The last one's backward exchanges the sums of all.
            quiet = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
            with random_numbers_of(seed, position), quiet:
                if torch.cuda.is_initialized():
                    torch.cuda.manual_seed(int(torch.randint(2**62, ())))
                with autocast():
                    found = model(batch)
                found = {"total_loss": found} if isinstance(found, Tensor) else found
                backward(sum(found.values()) / parts if parts > 1 else sum(found.values()))
            for name, loss in found.items():
                losses[name] = losses.get(name, 0.0) + loss.detach() / parts
    finally:
        for counter in counters if parts > 1 else ():
            counter.set_means(None)
    return losses


def _set_means(counters: Sequence[Counter], batches: Sequence[Any]) -> None:
    """Count all parts before the first one is computed, which costs next to nothing: no network is run."""
    for counter in counters if len(batches) > 1 else ():
        total = torch.stack([counter.count(batch) for batch in batches]).sum(0)
        counter.set_means(distributed.sum_(total) / (len(batches) * distributed.world_size()))
