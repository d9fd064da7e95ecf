"""A small backbone and small two-stage models for tests, by config."""

from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.structures import Boxes, Instances, PolygonMasks


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """One residual block per stage, 16 to 128 channels wide."""
    widths = [16, 16, 32, 64, 128]
    stages = [
        ResNet.make_stage(
            BasicBlock,
            1,
            in_channels=widths[i],
            out_channels=widths[i + 1],
            stride_per_block=[1 if i == 0 else 2],
            norm="BN",
        )
        for i in range(4)
    ]
    bottom_up = ResNet(
        BasicStem(input_shape.channels, widths[0], norm="BN"), stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES
    )
    return FPN(
        bottom_up, cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, norm="BN", top_block=LastLevelMaxPool()
    )


def fpn_config() -> CfgNode:
    """The small backbone, on the CPU."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [58.0, 58.0, 58.0]
    cfg.MODEL.BACKBONE.NAME = "build_small_resnet_fpn_backbone"
    levels = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = levels
    cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    return cfg


def mask_rcnn_config(num_classes: int) -> CfgNode:
    """Mask R-CNN for objects of 10 to 50 pixels; ``CascadeROIHeads`` needs no more than its name."""
    cfg = fpn_config()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12], [24], [48]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4"]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 64
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 200
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 1
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 1
    return cfg


def cascade_config(num_classes: int) -> CfgNode:
    """The same with three box heads in a row."""
    cfg = mask_rcnn_config(num_classes)
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    return cfg


def c4_config(num_classes: int) -> CfgNode:
    """Faster R-CNN on ``res4`` of a narrow ResNet-50, with masks."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [58.0, 58.0, 58.0]
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    return cfg


def two_boxes(size: tuple[int, int], classes: tuple[int, int] = (0, 2)) -> Instances:
    """Ground truth of two objects, with masks that fill their boxes."""
    boxes = torch.tensor([[4.0, 6.0, 30.0, 28.0], [24.0, 20.0, 44.0, 46.0]])
    corners = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes.tolist()]
    return Instances(
        size,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.tensor(classes),
        gt_masks=PolygonMasks([[np.array(each)] for each in corners]),
    )


def nothing(size: tuple[int, int]) -> Instances:
    """Ground truth of an image without objects, as the data loader makes it: no masks."""
    return Instances(size, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))


def random_inputs(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """Images (height, width) of noise."""
    generator = torch.Generator().manual_seed(3)
    return [{"image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)} for size in sizes]
