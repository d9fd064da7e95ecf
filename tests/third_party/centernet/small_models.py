"""Small CenterNet models for tests, by config, and ground truth for them."""

from collections.abc import Sequence

import torch

import centernet  # noqa: F401  registers the models
from centernet.config import add_centernet_config
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Boxes, Instances


def objects(boxes: Sequence[Sequence[float]], classes: Sequence[int], size: tuple[int, int] = (64, 96)) -> Instances:
    return Instances(
        size,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def one_stage_config(num_classes: int) -> CfgNode:
    """`CenterNetDetector` on a narrow ResNet-50 with two pyramid levels."""
    cfg = get_cfg()
    add_centernet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "CenterNetDetector"
    cfg.MODEL.PIXEL_STD = [58.0, 58.0, 58.0]
    cfg.MODEL.BACKBONE.NAME = "build_p35_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CenterNet"
    node = cfg.MODEL.CENTERNET
    node.NUM_CLASSES = num_classes
    node.IN_FEATURES = ["p3", "p4"]
    node.FPN_STRIDES = [8, 16]
    node.SOI = [[0, 40], [30, 10000]]
    node.NUM_CLS_CONVS = node.NUM_BOX_CONVS = 1
    node.INFERENCE_TH = 0.001
    return cfg


def two_stage_config(num_classes: int, heads: str = "CustomCascadeROIHeads") -> CfgNode:
    """The same as proposal generator, with ROI heads."""
    cfg = one_stage_config(num_classes)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    node = cfg.MODEL.CENTERNET
    node.ONLY_PROPOSAL = node.WITH_AGN_HM = True
    node.POST_NMS_TOPK_TRAIN = node.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.6]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.6, 0.7, 0.8)
    head = cfg.MODEL.ROI_BOX_HEAD
    head.NAME = "FastRCNNConvFCHead"
    head.CLS_AGNOSTIC_BBOX_REG = True
    head.NUM_FC = 1
    head.FC_DIM = 32
    head.POOLER_RESOLUTION = 3
    head.MULT_PROPOSAL_SCORE = True
    return cfg
