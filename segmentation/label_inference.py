"""Label maps without the (K, H, W) map of scores: in little memory, and without crops that cannot change a label."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segmentation.zero_shot_inference import blend

__all__ = ["LabelSearch", "PixelWeights", "label_map"]

_SCORES_PER_CHUNK = 1 << 24  # pixels times classes that are in memory at a time
_MANY_CLASSES = 1000  # from which on it pays to leave out those that cannot win
_NEIGHBOURS = 128  # pixels that leave out classes together
_SAMPLE = 4096  # pixels that tell cheaply whether all labels may be certain
_ROUNDING = 1e-5  # relative; sums over 100 queries in float32 err by less


class PixelWeights:
    """How much each mask counts in each pixel of the output: its probability, resized as score maps are.

    Scores are linear in the masks, so that resizing the masks or the scores makes no difference; weights are made for
    the pixels at hand only.
    """

    def __init__(self, masks: Tensor, size: Sequence[int]) -> None:
        """Prepare mask probabilities (Q, h, w) for an output of ``size`` (H, W)."""
        self._rows = masks.flatten(1).T.contiguous()  # (h·w, Q)
        self._from = tuple(masks.shape[-2:])
        self._size = (int(size[0]), int(size[1]))
        self.device = masks.device

    def __len__(self) -> int:
        return self._size[0] * self._size[1]

    def of(self, pixels: Tensor) -> Tensor:
        """(n, Q) weights in pixels (n,), counted row by row."""
        if self._size == self._from:
            return self._rows[pixels]
        y, below, down = self._line(pixels.div(self._size[1], rounding_mode="floor"), 0)
        x, right, across = self._line(pixels % self._size[1], 1)
        upper = torch.lerp(self._at(y, x), self._at(y, right), across)
        lower = torch.lerp(self._at(below, x), self._at(below, right), across)
        return torch.lerp(upper, lower, down)

    def _at(self, y: Tensor, x: Tensor) -> Tensor:
        return self._rows[y * self._from[1] + x]

    def _line(self, place: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """The two mask pixels on either side of output pixels, and how far (n, 1) those are from the first."""
        length = self._from[axis]
        source = ((place + 0.5) * (length / self._size[axis]) - 0.5).clamp(min=0)
        first = source.long().clamp(max=length - 1)
        return first, (first + 1).clamp(max=length - 1), (source - first)[:, None].to(self._rows.dtype)


def label_map(scores: Tensor, weights: PixelWeights) -> Tensor:
    """(H·W,) int64 classes of the largest sum over masks of scores (Q, K), not negative, times weights.

    The memory that it needs does not grow with the number of classes. On a CPU, neighbouring pixels leave out classes
    of a large vocabulary that cannot be the largest in any of them.
    """
    everything = torch.arange(len(weights), device=weights.device)
    if scores.device.type == "cpu" and scores.shape[1] >= _MANY_CLASSES:
        by_class = scores.T.contiguous()
        return torch.cat([_label_neighbours(by_class, weights.of(part)) for part in everything.split(_NEIGHBOURS)])
    parts = everything.split(_pixels_per_chunk(scores))
    return torch.cat([(weights.of(pixels) @ scores).argmax(1) for pixels in parts])


def _label_neighbours(by_class: Tensor, weights: Tensor) -> Tensor:
    """(n,) classes of n pixels with weights (n, Q) and scores (K, Q) of classes."""
    low, high = torch.aminmax(weights, dim=0)
    most, least = by_class @ high, by_class @ low  # of every class, over these pixels
    kept = (most >= (1 - _ROUNDING) * least.amax()).nonzero()[:, 0]
    return kept[(weights @ by_class[kept].T).argmax(1)]


class LabelSearch:
    """The labels of one image, found with as few looks of CLIP at masks as they need.

    What CLIP says about a mask is a factor of at most 1 on each of its class scores, so the scores without CLIP bound
    from above what a mask that was not looked at adds to a pixel, and 0 bounds it from below. A pixel is certain once
    those masks together cannot lift another class over its best one. So the labels are those of looking at every mask.
    """

    def __init__(
        self,
        query_scores: Tensor,
        weights: PixelWeights,
        valid: Tensor,
        seen: Tensor,
        weight: float,
        *,
        doubt: float = 0.0,
    ) -> None:
        """Start with nothing but the masks that CLIP cannot look at.

        Args:
            query_scores: (Q, K) class probabilities of the queries.
            weights: of the masks.
            valid: (Q,) bool, the masks that CLIP can look at.
            seen: (K,) 1 for classes with training masks.
            weight: of the queries for seen classes; not positive: CLIP alone, and other masks than the valid are left
                out.
            doubt: share of the pixels that need not be certain. They have the best class by what was looked at.
        """
        self._may_doubt = doubt * len(weights)
        self._query_scores, self._seen, self._weight = query_scores, seen, weight
        self._clip_alone = weight <= 0 and bool(valid.any())
        if self._clip_alone:
            self._scores = valid[:, None].to(query_scores).repeat(1, query_scores.shape[1])
        else:
            self._scores = blend(query_scores, torch.ones_like(query_scores), seen, weight)
        self._weights = weights
        self._open = valid.clone()
        self._labels = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)
        self._unsure = torch.arange(len(weights), device=weights.device)

    def next(self, count: int) -> Tensor:
        """Up to ``count`` masks to look at, which may add most to the pixels in doubt; none when labels are found."""
        if self._is_certain():
            return self._unsure.new_zeros(0)
        importance = self._scores.amax(1) * self._weights.of(self._sample()).sum(0)
        left = self._open.nonzero()[:, 0]
        return left[importance[left].topk(min(count, len(left))).indices]

    def add(self, masks: Tensor, clip_scores: Tensor) -> None:
        """Take CLIP's class probabilities (m, K) of masks (m,) into account."""
        if not self._clip_alone:
            clip_scores = blend(self._query_scores[masks], clip_scores, self._seen, self._weight)
        self._scores[masks] = clip_scores
        self._open[masks] = False

    def labels(self) -> Tensor:
        """(H·W,) int64; final once :meth:`next` has given no mask."""
        return self._labels

    def _is_certain(self) -> bool:
        """Label pixels that are in doubt; True when few enough are left. Rounds that settle few look at a sample."""
        settled = 1.0
        if bool(self._open.any()):
            settled = float(self._best(self._sample())[1].double().mean())
        if settled < 0.5 and (1 - settled) * len(self._unsure) > self._may_doubt:
            return False
        left = []
        for pixels in self._unsure.split(_pixels_per_chunk(self._scores)):
            labels, certain = self._best(pixels)
            self._labels[pixels] = labels
            left.append(pixels[~certain])
        self._unsure = torch.cat(left)
        return len(self._unsure) <= self._may_doubt

    def _sample(self) -> Tensor:
        """Pixels spread over those in doubt."""
        return self._unsure[:: max(1, len(self._unsure) // _SAMPLE)]

    def _best(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Best classes (n,) of pixels (n,) by what is known, and where (n,) nothing unknown can change them."""
        weights, known = self._weights.of(pixels), ~self._open
        sums = weights[:, known] @ self._scores[known]
        best, labels = sums.max(1)
        if bool(known.all()):
            return labels, torch.ones_like(labels, dtype=torch.bool)
        most = torch.addmm(sums, weights[:, self._open], self._scores[self._open])
        most.scatter_(1, labels[:, None], -torch.inf)
        return labels, best * (1 - _ROUNDING) > most.amax(1)


def _pixels_per_chunk(scores: Tensor) -> int:
    return max(1, _SCORES_PER_CHUNK // scores.shape[1])
