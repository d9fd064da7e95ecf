"""What ``tools/train_net.py`` needs to know of detection: models, config keys, command-line options, entry point.

Light to import: models and data are loaded when ``main`` runs.
"""

import argparse
from typing import Any

import third_party  # noqa: F401  (makes detectron2 and centernet importable, so it comes first)
from centernet.config import add_centernet_config
from detection.config import add_detic_config
from detectron2.config import CfgNode

__all__ = ["META_ARCHITECTURES", "add_arguments", "add_config", "main", "setup"]

# Values of MODEL.META_ARCHITECTURE that this package trains and evaluates.
META_ARCHITECTURES: frozenset[str] = frozenset(
    {"CustomRCNN", "DeformableDetr", "CenterNetDetector", "GeneralizedRCNN", "ProposalNetwork"}
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command line besides detectron2's: custom data without registering anything."""
    group = parser.add_argument_group("custom data (detection)", "COCO files; their category names are the vocabulary")
    group.add_argument("--train-json", metavar="FILE", help="boxes to train on, as a COCO json")
    group.add_argument("--train-images", metavar="DIR", help="folder of its images")
    group.add_argument("--test-json", metavar="FILE", help="boxes to evaluate on, as a COCO json")
    group.add_argument("--test-images", metavar="DIR", help="folder of its images")


def add_config(cfg: CfgNode) -> None:
    """Add every key of detection in place, in the order that the hooks need."""
    add_centernet_config(cfg)
    add_detic_config(cfg)


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line; see ``detection.setup.setup``."""
    from detection.setup import setup as setup_detection

    return setup_detection(args)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate, or with ``--eval-only`` evaluate; see ``detection.training.run``. Runs in every process."""
    from detection.training import run

    return run(setup(args), args)
