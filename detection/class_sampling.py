"""Sampling of the classes that one training step of the dynamic classifier sees."""

from collections.abc import Sequence

import torch
from torch import Tensor

from centernet.modeling.roi_heads.fed_loss import get_fed_loss_inds

__all__ = ["sample_classes"]


def sample_classes(
    labels: Tensor | Sequence[int], *, num_classes: int, num_sample_cats: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The classes among ``labels`` and, if those are fewer than ``num_sample_cats``, others drawn without replacement.

    Args:
        labels: classes of this step, repeats allowed; none is fine.
        num_classes: size of the vocabulary.
        weight: (C',) unnormalised probabilities of the first C' classes, 0 for the others; None for equal ones.
    Returns:
        the n chosen classes (n,), and (num_classes + 1,) the position of each class among them, n for all others and
        for the background, which is the last entry.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64, device=None if weight is None else weight.device)
    if weight is not None and (labels >= len(weight)).any():
        weight = torch.cat((weight, weight.new_zeros(num_classes - len(weight))))
    candidates = num_classes if weight is None else len(weight)
    inds = get_fed_loss_inds(labels, num_sample_cats, candidates, weight=weight)
    positions = inds.new_full((num_classes + 1,), len(inds))
    positions[inds] = torch.arange(len(inds), device=inds.device)
    return inds, positions
