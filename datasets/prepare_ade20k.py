"""Convert the label maps of ADE20K with 150 classes (MIT Scene Parsing).

python datasets/prepare_ade20k.py    # ADEChallengeData2016/annotations -> ADEChallengeData2016/annotations_detectron2
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from preparation.annotation_files import add_root
from preparation.label_maps import convert_maps, list_files, lookup_table, segmentation_facts

from prompt_pretrain.command_line import run_command


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_ade20k", description=(__doc__ or "").split("\n")[0])
    add_root(parser)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="threads")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    folder = Path(args.root, "ADEChallengeData2016")
    for split in ("training", "validation"):
        files = list_files(folder / "annotations" / split, "*.png")
        target = folder / "annotations_detectron2" / split
        convert_maps(files, {target: table()}, workers=args.workers, keep_empty=True)
    return 0


def table() -> np.ndarray:
    """From raw value to label: one less, and 0 is ignored."""
    raw = segmentation_facts("ade20k_150")["raw_png_value"]
    return lookup_table({value: label for label, value in enumerate(raw)}, [0])


if __name__ == "__main__":
    sys.exit(run_command(main))
