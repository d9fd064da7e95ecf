"""A cheap look at huge vocabularies in half precision that finds the classes worth an exact one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detection.linear_scores import LinearScores

__all__ = ["Screen"]

_ROUNDING = 2.0**-8  # largest relative error of a number rounded to bfloat16
_SLACK = 1e-5  # for what float32 rounds in the scores themselves
_FAR = 1000.0  # a logit whose sigmoid is 0 or 1
_FEWEST_CHUNKS = 4  # of classes: fewer are scored before a screen is set up


class Screen:
    """Tells for some classes at a time which can have a score above the threshold in any region.

    Scores are means of the stages' sigmoids, so one above the threshold needs a logit of at least the threshold's in
    some stage. Logits are computed in bfloat16; the threshold is lowered by the largest error that can make. A class
    that is left out therefore has no candidate, and results do not depend on the screen.
    """

    def __init__(self, stages: Sequence[LinearScores], valid: Tensor) -> None:
        """
        Args:
            stages: scores of R regions over the same classes.
            valid: (R,) bool: regions that may have candidates; those with features that are not finite are not.
        """
        self.weights = [stage.weight for stage in stages]
        features = [stage.features.where(valid[:, None], 0.0) for stage in stages]
        self.features = [each.bfloat16() for each in features]
        # By Cauchy-Schwarz the error of a product is at most 2 roundings (and their product) times both norms.
        self.norms = torch.stack([each.norm(dim=1) for each in features]).amax(dim=0)
        self.bias = max(stage.bias.max() for stage in stages) if stages[0].bias is not None else None
        self.useful = True

    @classmethod
    def of(
        cls, stages: Sequence[LinearScores], valid: Tensor, num_classes: int, classes_per_chunk: int
    ) -> "Screen | None":
        """A screen, where it saves time: on a CPU that multiplies bfloat16 faster than float32, over many classes."""
        first = stages[0]
        usable = (
            first.weight is not None
            and first.features.device.type == "cpu"
            and first.features.dtype == torch.float32
            and num_classes >= _FEWEST_CHUNKS * classes_per_chunk
            and len(first.features) > 0
            and _bfloat16_is_fast()
        )
        return cls(stages, valid) if usable else None

    def promising(self, classes: slice, floors: Tensor, factors: Tensor | None) -> slice | Tensor:
        """The classes that may hold a candidate: (n,) indices, or the slice itself where they are most of it.

        Args:
            floors: (R,) what a candidate's score must exceed.
            factors: (R,) proposal scores; the square of a score is this times the mean of the sigmoids.
        """
        if not self.useful:
            return classes
        needed = floors.clamp(min=0)
        if factors is not None:
            needed = needed.square() / factors
        limits = torch.logit((needed * (1 - _SLACK)).clamp(max=1)).nan_to_num(_FAR).clamp(-_FAR, _FAR)
        if self.bias is not None:
            limits = limits - self.bias
        largest_logits, largest_norm, previous = None, None, None
        for features, weight in zip(self.features, self.weights, strict=True):
            if weight is not previous:  # stages may share one; comparing copies costs more than converting them
                previous, chunk = weight, weight[:, classes]
                half, norm = chunk.bfloat16(), chunk.square().sum(dim=0).amax().sqrt()
                largest_norm = norm if largest_norm is None else torch.maximum(largest_norm, norm)
            logits = features @ half
            largest_logits = logits if largest_logits is None else torch.maximum(largest_logits, logits)
        # 2 roundings in the product, 1 of the result, 1 of the limit; and a little for those of higher order.
        limits = limits - _ROUNDING * (2.05 * self.norms * largest_norm + 2.05 * limits.abs())
        columns = (largest_logits.sub_(limits.bfloat16()[:, None]).amax(dim=0) > 0).nonzero()[:, 0]
        if len(columns) > largest_logits.shape[1] // 2:
            # Where most classes have candidates, looking twice costs more than it saves.
            self.useful = False
            return classes
        return columns + classes.start


def _bfloat16_is_fast() -> bool:
    """Whether this CPU has instructions for it; elsewhere it is emulated, slower than float32."""
    name = "_is_avx512_bf16_supported"  # absent in some versions of PyTorch
    return bool(getattr(torch.cpu, name, lambda: False)())
