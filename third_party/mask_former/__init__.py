"""MaskFormer (arXiv 2107.06278) as a detectron2 project, written from its paper under its public names."""

from mask_former.config import add_mask_former_config

__all__ = ["add_mask_former_config"]
