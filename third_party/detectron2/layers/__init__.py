"""Layers that models are built from."""

from detectron2.layers.aspp import ASPP
from detectron2.layers.batch_norm import FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from detectron2.layers.blocks import CNNBlockBase, DepthwiseSeparableConv2d
from detectron2.layers.deform_conv import DeformConv, ModulatedDeformConv
from detectron2.layers.losses import ciou_loss, diou_loss
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.nms import batched_nms, nms
from detectron2.layers.roi_align import ROIAlign, roi_align
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    interpolate,
    move_device_like,
    nonzero_tuple,
)
from detectron2.utils.left_out import left_out

__all__ = [
    "ASPP",
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "DeformConv",
    "DepthwiseSeparableConv2d",
    "FrozenBatchNorm2d",
    "Linear",
    "ModulatedDeformConv",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ShapeSpec",
    "batched_nms",
    "cat",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "get_norm",
    "interpolate",
    "move_device_like",
    "nms",
    "nonzero_tuple",
    "paste_masks_in_image",
    "roi_align",
]

__getattr__ = left_out(
    __name__,
    "CycleBatchNormList",
    "ROIAlignRotated",
    "batched_nms_rotated",
    "empty_input_loss_func_wrapper",
    "nms_rotated",
    "roi_align_rotated",
    "shapes_to_tensor",
)
