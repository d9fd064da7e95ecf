"""Federated loss: which classes a step learns from when only some classes of an image are annotated exhaustively.

Source: CenterNet2 (arXiv 2103.07461, section 4.3) after the federated annotation of LVIS (arXiv 1908.03195).
"""

import json
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["get_fed_loss_inds", "load_class_freq"]


def load_class_freq(path: str = "datasets/lvis/lvis_v1_train_cat_info.json", freq_weight: float | None = 0.5) -> Tensor:
    """(C,) float32 ``image_count ** freq_weight`` of the classes, in the order of their ids.

    Args:
        path: json list of objects of which ``id`` and ``image_count`` are read.
        freq_weight: None for the counts themselves.
    Raises:
        FileNotFoundError, ValueError: no such file, or not such a list.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} not found (MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH): expected a json list of the training set's "
            f"categories with 'id' and 'image_count'; it is needed where only some classes enter the loss"
        )
    try:
        categories = json.loads(file.read_text(encoding="utf-8"))
        counts = [count for _, count in sorted((entry["id"], entry["image_count"]) for entry in categories)]
        weights = torch.tensor(counts, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path} (MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH): expected a json list of objects with numbers 'id' and "
            f"'image_count' ({type(error).__name__}: {error})"
        ) from error
    return weights if freq_weight is None else weights**freq_weight


def get_fed_loss_inds(
    gt_classes: Tensor, num_sample_cats: int = 50, num_classes: int = 1203, weight: Tensor | None = None
) -> Tensor:
    """Distinct classes that enter the loss: those of ``gt_classes`` in ascending order, then random others.

    Args:
        gt_classes: (R,) int64 labels; ``num_classes`` is background, which counts as one of the classes present.
        num_sample_cats: number of classes in all; more if ``gt_classes`` has more, fewer if no others can be drawn.
        weight: (``num_classes``,) weights of the draw; None for equal ones.
    Returns:
        (at least ``num_sample_cats``,) int64 in [0, ``num_classes``].
    """
    present = gt_classes.unique()
    missing = num_sample_cats - len(present)
    if missing <= 0:
        return present
    chances = present.new_ones(num_classes + 1, dtype=torch.float32)
    if weight is not None:
        chances[:num_classes] = weight.float()
    chances[num_classes] = 0  # never drawn: background has no column in the loss
    chances[present] = 0
    available = int(torch.count_nonzero(chances))
    if available < missing:  # fewer classes than asked for: take what there is
        missing = available
    return present if missing == 0 else torch.cat((present, torch.multinomial(chances, missing)))
