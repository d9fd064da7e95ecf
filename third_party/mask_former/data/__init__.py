"""Data of MaskFormer: label maps and the mappers that make training samples of them."""

from mask_former.data.label_maps import LabelMapError, check_labels, read_labels

__all__ = ["LabelMapError", "check_labels", "read_labels"]
