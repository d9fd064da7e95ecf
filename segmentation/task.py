"""What ``tools/train_net.py`` needs to know of segmentation: models, config keys, command-line options, entry point.

Light to import: models and data are loaded when ``main`` runs.
"""

import argparse
from contextlib import suppress
from typing import Any

import third_party  # noqa: F401  (makes detectron2 and mask_former importable, so it comes first)
from detectron2.config import CfgNode
from segmentation.config import add_config

__all__ = ["META_ARCHITECTURES", "add_arguments", "add_config", "main", "setup"]

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command line besides detectron2's: custom data without registering anything."""
    group = parser.add_argument_group(
        "custom data (segmentation)", "images and label maps of the same names; the value of a pixel is its class"
    )
    for option, metavar, meaning in (
        ("--train-images", "DIR", "folder of images to train on"),
        ("--train-labels", "DIR", "folder of their label maps"),
        ("--test-images", "DIR", "folder of images to evaluate on"),
        ("--test-labels", "DIR", "folder of their label maps"),
        ("--classes", "FILE", "class names, one per line, in the order of the values in label maps"),
        ("--test-classes", "FILE", "those of the test label maps, if they differ; new ones count as unseen"),
    ):
        with suppress(argparse.ArgumentError):  # detection has folders of images as well
            group.add_argument(option, metavar=metavar, help=meaning)


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line; see ``segmentation.setup.setup``."""
    from segmentation.setup import setup as setup_segmentation

    return setup_segmentation(args)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate, or with ``--eval-only`` evaluate, in every process; see ``segmentation.training.run``."""
    from segmentation.training import run

    return run(setup(args), args)
