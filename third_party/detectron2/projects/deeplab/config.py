"""Config keys of the DeepLab project."""

from detectron2.config import CfgNode


def add_deeplab_config(cfg: CfgNode) -> None:
    """Add the keys of DeepLab in place. Call before the config function of a project that builds upon it."""
    cfg.SOLVER.POLY_LR_POWER = 0.9  # WarmupPolyLR: exponent of (1 - iteration / MAX_ITER)
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0  # WarmupPolyLR: factor below which the rate stays constant; 0 = never

    head = cfg.MODEL.SEM_SEG_HEAD
    head.LOSS_TYPE = "hard_pixel_mining"  # or "cross_entropy"
    head.PROJECT_FEATURES = ["res2"]  # low-level features that join in the decoder
    head.PROJECT_CHANNELS = [48]  # channels of each of them after its projection
    head.ASPP_CHANNELS = 256
    head.ASPP_DILATIONS = [6, 12, 18]
    head.ASPP_DROPOUT = 0.1
    head.USE_DEPTHWISE_SEPARABLE_CONV = False

    resnets = cfg.MODEL.RESNETS
    resnets.RES4_DILATION = 1  # 1 or 2; 2 asks for RES5_DILATION 4
    resnets.RES5_MULTI_GRID = [1, 2, 4]  # factor on RES5_DILATION per block of res5, active even at dilation 1
    resnets.STEM_TYPE = "deeplab"  # three 3x3 convolutions; "basic": one of 7x7

    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0  # largest share of a crop that one class may take; 1 = any
