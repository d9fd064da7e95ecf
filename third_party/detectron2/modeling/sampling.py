"""Random choice of the boxes that a loss is computed on."""

import torch
from torch import Tensor

from detectron2.layers.wrappers import nonzero_tuple


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Indices of randomly chosen foreground and of background entries, ``num_samples`` together if there are enough.

    Args:
        labels: (N,) class of each entry; -1 is ignored.
        num_samples: how many to choose at most.
        positive_fraction: largest share of foreground, rounded down; background fills up what foreground leaves.
        bg_label: the label that means background; all but this and -1 are foreground.
    """
    positive = nonzero_tuple((labels != -1) & (labels != bg_label))[0]
    negative = nonzero_tuple(labels == bg_label)[0]
    num_positive = min(len(positive), int(num_samples * positive_fraction))
    num_negative = min(len(negative), num_samples - num_positive)
    # Positives draw first: the order decides what a seed means.
    chosen_positive = positive[torch.randperm(len(positive), device=labels.device)[:num_positive]]
    chosen_negative = negative[torch.randperm(len(negative), device=labels.device)[:num_negative]]
    return chosen_positive, chosen_negative
