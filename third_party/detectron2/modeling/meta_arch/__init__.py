"""Whole models: two-stage detectors, their first stage alone, semantic segmentation."""

from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.meta_arch.semantic_seg import (
    SEM_SEG_HEADS_REGISTRY,
    SemanticSegmentor,
    SemSegFPNHead,
    build_sem_seg_head,
)
from detectron2.utils.left_out import left_out

__all__ = [
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "GeneralizedRCNN",
    "ProposalNetwork",
    "SemSegFPNHead",
    "SemanticSegmentor",
    "build_model",
    "build_sem_seg_head",
]

LEFT_OUT = ("FCOS", "PanopticFPN", "RetinaNet")

__getattr__ = left_out(__name__, *LEFT_OUT)
