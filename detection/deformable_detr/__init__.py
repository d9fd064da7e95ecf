"""Deformable DETR (arXiv 2010.04159) with Detic's federated and image-label losses, in plain PyTorch.

Importing registers the meta-architecture ``DeformableDetr``; its settings are ``MODEL.DETR``. Parameter
names are those of the published package, so its checkpoints load; no compiled operator is needed.
"""

from detection.deformable_detr.meta_arch import DeformableDetr

__all__ = ["DeformableDetr"]
