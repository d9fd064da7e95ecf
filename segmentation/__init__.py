"""Open-vocabulary segmentation (ZSSeg, arXiv 2112.14757) with class embeddings of a learned prompt.

Importing the package registers its models and data sets with detectron2. ``segmentation.load`` is the Python API.
"""

from typing import Any

import third_party  # noqa: F401  (makes detectron2 and mask_former importable, so it comes first)
from segmentation import (  # noqa: F401  (register models)
    ablations,
    clip_backbone,
    proposal_classifier,
    zero_shot_head,
    zero_shot_mask_former,
)
from segmentation.data import datasets  # noqa: F401  registers

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # brings the image libraries, which training does not need
        from segmentation.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
