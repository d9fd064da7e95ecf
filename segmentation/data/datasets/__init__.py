"""Registers the segmentation sets under the folder that ``DETECTRON2_DATASETS`` names, ``datasets`` by default."""

from segmentation.data.datasets.builtin import dataset_root, pseudo_label_root, register_segmentation_datasets
from segmentation.data.datasets.pairs import load_binary_mask, load_sem_seg, pair_files
from segmentation.data.datasets.shapeworld import register_shapeworld

__all__ = [
    "dataset_root",
    "load_binary_mask",
    "load_sem_seg",
    "pair_files",
    "pseudo_label_root",
    "register_segmentation_datasets",
    "register_shapeworld",
]

register_segmentation_datasets(dataset_root(), pseudo_label_root())
register_shapeworld(dataset_root())
