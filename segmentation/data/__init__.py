"""Data of segmentation: data sets, mappers, loaders."""

from segmentation.data.binary_mapper import MaskFormerBinarySemanticDatasetMapper
from segmentation.data.loading import build_test_loader, build_train_loader, build_train_mapper, get_records
from segmentation.data.sampling import sample_per_class
from segmentation.data.transforms import CenterCrop, CropImageWithMask, RandomResizedCrop

__all__ = [
    "CenterCrop",
    "CropImageWithMask",
    "MaskFormerBinarySemanticDatasetMapper",
    "RandomResizedCrop",
    "build_test_loader",
    "build_train_loader",
    "build_train_mapper",
    "get_records",
    "sample_per_class",
]
