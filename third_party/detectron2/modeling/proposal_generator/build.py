"""Proposal generators by name."""

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.utils.registry import Registry

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Modules that propose boxes, made as ``cls(cfg, input_shape)`` with the `ShapeSpec` of each feature map by name. Called
with (images, features, gt_instances), they return one `Instances` for each image and a dict of losses.
"""


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """The module that ``MODEL.PROPOSAL_GENERATOR.NAME`` names; None for ``PrecomputedProposals``.

    Raises:
        KeyError: no proposal generator of that name is registered.
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
