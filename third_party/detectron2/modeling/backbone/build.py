"""Backbones by name."""

from detectron2.config import CfgNode
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.utils.registry import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Functions or classes that make a `Backbone`, called as ``f(cfg, input_shape)`` where ``input_shape`` is a `ShapeSpec`
with the number of image channels.
"""


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone that ``MODEL.BACKBONE.NAME`` names.

    Args:
        input_shape: channels of the images; by default one for each entry of ``MODEL.PIXEL_MEAN``.
    Raises:
        KeyError: no backbone of that name is registered.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    assert isinstance(backbone, Backbone), (
        f"MODEL.BACKBONE.NAME {name!r} made a {type(backbone).__name__}, expected a subclass of Backbone"
    )
    return backbone
