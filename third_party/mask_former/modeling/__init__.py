"""Parts of MaskFormer; importing registers its heads, pixel decoders and backbone."""

from mask_former.modeling.backbone.d2_swin import D2SwinTransformer
from mask_former.modeling.heads.mask_former_head import MaskFormerHead
from mask_former.modeling.heads.per_pixel_baseline import PerPixelBaselineHead, PerPixelBaselinePlusHead
from mask_former.modeling.pixel_decoder.base_pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder

__all__ = [
    "BasePixelDecoder",
    "D2SwinTransformer",
    "MaskFormerHead",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "TransformerEncoderPixelDecoder",
]
