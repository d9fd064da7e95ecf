"""Reading label maps for training, with an error where a value is no class."""

import numpy as np
import torch

from detectron2.data import detection_utils as utils
from detectron2.structures import Instances

__all__ = ["LabelMapError", "check_labels", "classes_of", "masks_of_classes", "read_labels"]

_SHOWN = 5


class LabelMapError(ValueError):
    """A label map that is missing, or does not fit its image or its classes."""


def read_labels(file_name: str, image: np.ndarray, num_classes: int | None, ignore_label: int) -> np.ndarray:
    """(H, W) float64 labels of an (H, W, 3) image.

    Floats, because detectron2 resizes them differently from bytes: each pixel gets the label at its upper left corner
    instead of its centre, as the published models have seen them.

    Args:
        file_name: an image with one channel of 8 or 16 bits, or with a palette whose indices are the labels.
        num_classes: labels from here on are an error; None admits any.
        ignore_label: is none.
    Raises:
        LabelMapError: more than one channel, another size than the image, or a label that is no class.
    """
    labels = utils.read_image(file_name)
    if labels.ndim != 2:
        raise LabelMapError(
            f"label map {file_name} has {labels.shape[2]} channels; expected one, whose values are class indices"
        )
    if labels.shape != image.shape[:2]:
        raise LabelMapError(
            f"label map {file_name} is {labels.shape[1]}x{labels.shape[0]} (width x height), its image "
            f"{image.shape[1]}x{image.shape[0]}; make them equal"
        )
    check_labels(labels, num_classes, ignore_label, file_name)
    return labels.astype(np.float64)


def check_labels(labels: np.ndarray, num_classes: int | None, ignore_label: int, file_name: str) -> None:
    """Raise LabelMapError for labels that are neither below ``num_classes`` nor ``ignore_label``."""
    if num_classes is None:
        return
    is_wrong = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_label)
    if is_wrong.any():
        wrong = np.unique(labels[is_wrong]).tolist()
        shown = ", ".join(map(str, wrong[:_SHOWN])) + (" and more" if len(wrong) > _SHOWN else "")
        raise LabelMapError(
            f"label map {file_name} holds {shown}, expected the labels 0 to {num_classes - 1} of the {num_classes} "
            f"classes or the ignored {ignore_label}; prepare the data set again, or correct its list of classes"
        )


def classes_of(labels: torch.Tensor, ignore_label: int) -> torch.Tensor:
    """(n,) int64: the labels in a map (H, W) int64 of labels from 0, ascending and without the ignored one."""
    counts = torch.bincount(labels.flatten())  # many times faster than sorting the pixels, as unique() does
    classes = counts.nonzero().flatten()
    return classes[classes != ignore_label]


def masks_of_classes(labels: torch.Tensor, classes: torch.Tensor) -> Instances:
    """One object per class with the mask of its pixels: ``gt_classes`` (n,) int64, ``gt_masks`` (n, H, W) bool.

    Args:
        labels: (H, W) int64.
        classes: (n,) int64.
    """
    instances = Instances(tuple(labels.shape))
    instances.gt_classes = classes
    instances.gt_masks = labels == classes[:, None, None]
    return instances
