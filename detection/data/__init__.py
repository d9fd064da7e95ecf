"""Data of the detector: records of several training sets, their mapper, and a loader that resumes exactly."""

from detection.data.loading import (
    build_custom_train_loader,
    build_train_loader,
    get_detection_dataset_dicts_with_source,
)
from detection.data.mapper import CustomDatasetMapper, build_train_mapper
from detection.data.samplers import MultiDatasetSampler
from detection.data.tar_dataset import DiskTarDataset
from detection.data.transforms import EfficientDetResizeCrop, build_custom_augmentation

__all__ = [
    "CustomDatasetMapper",
    "DiskTarDataset",
    "EfficientDetResizeCrop",
    "MultiDatasetSampler",
    "build_custom_augmentation",
    "build_custom_train_loader",
    "build_train_loader",
    "build_train_mapper",
    "get_detection_dataset_dicts_with_source",
]
