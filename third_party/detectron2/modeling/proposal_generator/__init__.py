"""First stage of two-stage detectors: boxes that may hold an object."""

from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY, build_proposal_generator
from detectron2.modeling.proposal_generator.rpn import RPN, RPN_HEAD_REGISTRY, StandardRPNHead, build_rpn_head
from detectron2.utils.left_out import left_out

__all__ = [
    "PROPOSAL_GENERATOR_REGISTRY",
    "RPN",
    "RPN_HEAD_REGISTRY",
    "StandardRPNHead",
    "build_proposal_generator",
    "build_rpn_head",
]

LEFT_OUT = ("RRPN",)

__getattr__ = left_out(__name__, *LEFT_OUT)
