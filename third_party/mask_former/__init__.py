"""MaskFormer (arXiv 2107.06278) as a detectron2 project, written from its paper under its public names.

Importing registers its models with detectron2.
"""

from mask_former import modeling
from mask_former.config import add_mask_former_config
from mask_former.data.dataset_mappers.mask_former_semantic_dataset_mapper import MaskFormerSemanticDatasetMapper
from mask_former.mask_former_model import MaskFormer

__all__ = ["MaskFormer", "MaskFormerSemanticDatasetMapper", "add_mask_former_config", "modeling"]
