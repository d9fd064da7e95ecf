"""The registry of keypoint heads; the heads are left out, the real detectron2 has them."""

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.utils.left_out import left_out, needs_real_detectron2
from detectron2.utils.registry import Registry

ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")
ROI_KEYPOINT_HEAD_REGISTRY.__doc__ = "Modules that find keypoints in regions, made as ``cls(cfg, input_shape)``."

LEFT_OUT = ("BaseKeypointRCNNHead", "KRCNNConvDeconvUpsampleHead")

__getattr__ = left_out(__name__, *LEFT_OUT, "keypoint_rcnn_inference", "keypoint_rcnn_loss")


def build_keypoint_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The module that ``MODEL.ROI_KEYPOINT_HEAD.NAME`` names.

    Raises:
        ImportError: it is one of those left out here.
        KeyError: no keypoint head of that name is registered.
    """
    name = cfg.MODEL.ROI_KEYPOINT_HEAD.NAME
    if name in LEFT_OUT and name not in ROI_KEYPOINT_HEAD_REGISTRY:
        raise needs_real_detectron2(f"MODEL.ROI_KEYPOINT_HEAD.NAME {name!r}")
    return ROI_KEYPOINT_HEAD_REGISTRY.get(name)(cfg, input_shape)
