"""Backbones of the published detectors: timm's networks and Swin. Importing this registers their builders."""

from detection.backbones import swin, timm_backbone  # noqa: F401  register the builders
