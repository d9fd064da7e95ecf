"""Open-vocabulary detection (Detic, arXiv 2201.02605) with class embeddings of a learned prompt.

Importing the package registers its models and data sets with detectron2. ``detection.load`` is the Python API.
"""

from typing import Any

import third_party  # noqa: F401  (makes detectron2 and centernet importable, so it comes first)
from detection import backbones, cascade_roi_heads, deformable_detr, meta_arch, res5_roi_heads  # noqa: F401  register
from detection.config import add_detic_config
from detection.data import datasets  # noqa: F401  registers

__all__ = ["add_detic_config", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # brings the image libraries, which training does not need
        from detection.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
