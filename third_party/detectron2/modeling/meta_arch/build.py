"""Whole models by name."""

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Classes or functions that make a whole model, called as ``f(cfg)``. A model takes a list of dicts, one for each image;
it returns a dict of losses in training, and a list of dicts otherwise.
"""


def build_model(cfg: CfgNode) -> nn.Module:
    """The model that ``MODEL.META_ARCHITECTURE`` names, on ``MODEL.DEVICE``; weights are not loaded.

    Raises:
        KeyError: no model of that name is registered.
    """
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
