"""Registers the data sets of Detic under the folder that ``DETECTRON2_DATASETS`` names, ``datasets`` by default."""

from detection.data.datasets.builtin import dataset_root, register_detection_datasets
from detection.data.datasets.extended_lvis import custom_load_lvis_json, custom_register_lvis_instances
from detection.data.datasets.oid import load_oid_json, register_oid_instances
from detection.data.datasets.shapeworld import register_shapeworld

__all__ = [
    "custom_load_lvis_json",
    "custom_register_lvis_instances",
    "dataset_root",
    "load_oid_json",
    "register_detection_datasets",
    "register_oid_instances",
    "register_shapeworld",
]

register_detection_datasets(dataset_root())
register_shapeworld(dataset_root())
