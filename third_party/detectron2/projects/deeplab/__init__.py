"""The part of the DeepLab project that other projects build upon: config keys, the polynomial schedule, its ResNet."""

from detectron2.projects.deeplab.build_solver import build_lr_scheduler
from detectron2.projects.deeplab.config import add_deeplab_config
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.projects.deeplab.resnet import build_resnet_deeplab_backbone

__all__ = ["WarmupPolyLR", "add_deeplab_config", "build_lr_scheduler", "build_resnet_deeplab_backbone"]
