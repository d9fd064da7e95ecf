"""Ablations of ZSSeg: perfect mask classification, classification of pixels, and proposals that are not learned."""

from segmentation.ablations.oracle import OracleMaskFormer
from segmentation.ablations.per_pixel import ZeroPerPixelBaselineHead, ZeroShotPerPixelModel
from segmentation.ablations.proposal_based import ZeroShotProposalBasedSegmentor

__all__ = [
    "OracleMaskFormer",
    "ZeroPerPixelBaselineHead",
    "ZeroShotPerPixelModel",
    "ZeroShotProposalBasedSegmentor",
]
