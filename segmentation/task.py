"""What ``tools/train_net.py`` needs to know of segmentation: models, config keys, entry point.

Light to import: models and data are loaded when ``main`` runs.
"""

import argparse
from typing import Any

import third_party  # noqa: F401  (makes detectron2 and mask_former importable, so it comes first)
from detectron2.config import CfgNode
from segmentation.config import add_config

__all__ = ["META_ARCHITECTURES", "add_config", "main", "setup"]

# Values of MODEL.META_ARCHITECTURE that this package trains and evaluates.
META_ARCHITECTURES: frozenset[str] = frozenset(
    {
        "MaskFormer",
        "OracleMaskFormer",
        "ProposalClipClassifier",
        "SemanticSegmentor",
        "ZeroShotMaskFormer",
        "ZeroShotPerPixelModel",
        "ZeroShotProposalBasedSegmentor",
    }
)


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line; see ``segmentation.setup.setup``."""
    from segmentation.setup import setup as setup_segmentation

    return setup_segmentation(args)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate, or with ``--eval-only`` evaluate, in every process; see ``segmentation.training.run``."""
    from segmentation.training import run

    return run(setup(args), args)
