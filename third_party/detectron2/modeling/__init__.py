"""Models and their parts."""

from detectron2.layers.shape_spec import ShapeSpec
from detectron2.modeling import backbone, meta_arch, proposal_generator, roi_heads
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from detectron2.modeling.backbone import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    build_backbone,
    build_resnet_backbone,
    make_stage,
)
from detectron2.modeling.meta_arch import (
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    GeneralizedRCNN,
    ProposalNetwork,
    SemanticSegmentor,
    build_model,
    build_sem_seg_head,
)
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator import (
    PROPOSAL_GENERATOR_REGISTRY,
    RPN_HEAD_REGISTRY,
    build_proposal_generator,
    build_rpn_head,
)
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    ROIHeads,
    StandardROIHeads,
    build_box_head,
    build_keypoint_head,
    build_mask_head,
    build_roi_heads,
)
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA, GeneralizedRCNNWithTTA
from detectron2.utils.left_out import left_out

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "BACKBONE_REGISTRY",
    "FPN",
    "META_ARCH_REGISTRY",
    "PROPOSAL_GENERATOR_REGISTRY",
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "RPN_HEAD_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "BaseMaskRCNNHead",
    "DatasetMapperTTA",
    "GeneralizedRCNN",
    "GeneralizedRCNNWithTTA",
    "ProposalNetwork",
    "ROIHeads",
    "ROIPooler",
    "ResNet",
    "ResNetBlockBase",
    "SemanticSegmentor",
    "ShapeSpec",
    "StandardROIHeads",
    "build_anchor_generator",
    "build_backbone",
    "build_box_head",
    "build_keypoint_head",
    "build_mask_head",
    "build_model",
    "build_proposal_generator",
    "build_resnet_backbone",
    "build_roi_heads",
    "build_rpn_head",
    "build_sem_seg_head",
    "detector_postprocess",
    "make_stage",
]

_DETECTORS_OF_MMDET = ("MMDetBackbone", "MMDetDetector")

__getattr__ = left_out(
    __name__,
    *backbone.LEFT_OUT,
    *meta_arch.LEFT_OUT,
    *proposal_generator.LEFT_OUT,
    *roi_heads.LEFT_OUT,
    *_DETECTORS_OF_MMDET,
)
