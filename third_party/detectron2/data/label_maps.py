"""Label maps of semantic segmentation: reading them, and naming values that are no class."""

import numpy as np
from PIL import Image

from detectron2.data.detection_utils import BROKEN_FILE, CorruptImageError
from detectron2.utils.file_io import PathManager

__all__ = ["LabelMapError", "check_label_map", "read_label_map"]

_SHOWN = 5


class LabelMapError(ValueError):
    """A label map holds values that are no class."""


def read_label_map(file_name: str) -> np.ndarray:
    """(H, W) labels as stored: grey values of 8 or 16 bits, or palette indices.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptImageError: the file is not a whole image.
        LabelMapError: it is a colour image.
    """
    with PathManager.open(file_name, "rb") as file:
        try:
            labels = np.array(Image.open(file))
        except BROKEN_FILE as error:
            raise CorruptImageError(f"label map {file_name} cannot be read: {error}; make it again") from error
    if labels.ndim != 2:
        raise LabelMapError(
            f"label map {file_name} has {labels.shape[2]} channels; expected one, whose values are class indices"
        )
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def check_label_map(labels: np.ndarray, num_classes: int, ignore_value: int | None, file_name: str) -> None:
    """Raise LabelMapError where values are neither below ``num_classes`` nor ``ignore_value``; all are named."""
    if labels.size == 0 or (labels.min() >= 0 and labels.max() < num_classes):
        return
    values, counts = np.unique(labels, return_counts=True)
    wrong = ((values < 0) | (values >= num_classes)) & (values != ignore_value)
    if not wrong.any():
        return
    rows = [f"{value} ({count} pixels)" for value, count in zip(values[wrong], counts[wrong], strict=True)]
    rest = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    raise LabelMapError(
        f"label map {file_name} holds {', '.join(rows[:_SHOWN])}{rest}, which are neither one of the {num_classes} "
        f"classes (0 to {num_classes - 1}) nor the ignore value {ignore_value}; convert the map or correct the number "
        f"of classes"
    )
