"""A cheap look at huge vocabularies in half precision that finds the classes worth an exact one."""

import math
import time
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from detection.linear_scores import LinearScores

__all__ = ["Screen"]

_ROUNDING = 2.0**-8  # largest relative error of a number rounded to bfloat16
_SLACK = 1e-5  # for what float32 rounds in the scores themselves
_WORTHWHILE = 2  # times as fast as float32, at least, for the screen to pay
_FEWEST_CHUNKS = 4  # of classes: fewer are scored before a screen is set up


class Screen:
    """Tells for some classes at a time which can have a score above the threshold in any region.

    Scores are means of the stages' sigmoids, so one above the threshold needs a logit of at least the threshold's in
    some stage. Logits are computed in bfloat16; the threshold is lowered by the largest error that can make. A class
    that is left out therefore has no candidate, and results do not depend on the screen.
    """

    def __init__(self, stages: Sequence[LinearScores]) -> None:
        self.stages = stages
        self.features = [stage.features.bfloat16() for stage in stages]
        # By Cauchy-Schwarz the error of a product is at most 2 roundings (and their product) times both norms.
        self.norms = torch.stack([stage.features.float().norm(dim=1) for stage in stages]).amax(dim=0)
        self.bias = max(stage.bias.max() for stage in stages) if stages[0].bias is not None else None
        self.useful = True

    @classmethod
    def of(cls, stages: Sequence[LinearScores], num_classes: int, classes_per_chunk: int) -> "Screen | None":
        """A screen, where it saves time: on a CPU that multiplies bfloat16 fast, over many classes."""
        first = stages[0]
        usable = (
            first.weight is not None
            and first.features.device.type == "cpu"
            and first.features.dtype == torch.float32
            and num_classes >= _FEWEST_CHUNKS * classes_per_chunk
            and len(first.features) > 0
            and _bfloat16_is_fast()
        )
        return cls(stages) if usable else None

    def promising(self, classes: slice, floors: Tensor, factors: Tensor | None) -> slice | Tensor:
        """The classes that may hold a candidate: (n,) indices, or the slice itself where they are most of it.

        Args:
            floors: (R,) what a candidate's score must exceed.
            factors: (R,) proposal scores, whose product with the class score's mean is the square of the score.
        """
        if not self.useful:
            return classes
        needed = floors.clamp(min=0)
        if factors is not None:
            needed = needed.square() / factors
        limits = torch.logit((needed * (1 - _SLACK)).clamp(max=1))
        if self.bias is not None:
            limits = limits - self.bias
        found = None
        for features, stage in zip(self.features, self.stages, strict=True):
            weight = stage.weight[:, classes]
            approximate = features @ weight.bfloat16()
            largest = weight.norm(dim=0).amax()
            margins = _ROUNDING * (2.1 * self.norms * largest + 2.1 * limits.abs())
            passing = approximate > (limits - margins)[:, None]
            found = passing if found is None else found.logical_or_(passing)
        columns = found.any(dim=0).nonzero()[:, 0]
        if len(columns) > found.shape[1] // 2:
            # Where most classes have candidates, looking twice costs more than it saves.
            self.useful = False
            return classes
        return columns + classes.start


@lru_cache(maxsize=1)
def _bfloat16_is_fast() -> bool:
    """Measured once, in a few milliseconds: what a processor supports does not say what its library makes of it."""
    sizes = (256, 512, 1024)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(sizes[0], sizes[1], dtype=dtype), torch.ones(sizes[1], sizes[2], dtype=dtype)
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - begin)
        seconds[dtype] = min(times)
    return math.isfinite(seconds[torch.float32]) and seconds[torch.float32] > _WORTHWHILE * seconds[torch.bfloat16]
