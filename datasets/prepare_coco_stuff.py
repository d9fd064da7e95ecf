"""Convert the label maps of COCO-Stuff 164k: all 171 classes, the 156 seen ones and the 15 unseen ones.

python datasets/prepare_coco_stuff.py    # coco/stuffthingmaps -> coco/stuffthingmaps_detectron2
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from preparation.annotation_files import add_root
from preparation.label_maps import IGNORED, convert_maps, list_files, lookup_table, segmentation_facts

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

_SPLITS = ("train2017", "val2017")
_LARGEST = 181  # raw value
_PUBLISHED = 123_287  # label maps of both splits


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_coco_stuff", description=(__doc__ or "").split("\n")[0])
    add_root(parser)
    parser.add_argument("--splits", nargs="+", choices=_SPLITS, default=list(_SPLITS), help="default: both")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="threads")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    folder = Path(args.root, "coco")
    sources = {split: list_files(folder / "stuffthingmaps" / split, "*.png") for split in args.splits}
    total = sum(map(len, sources.values()))
    if len(sources) == len(_SPLITS) and total != _PUBLISHED:
        print(f"{folder}/stuffthingmaps holds {total:,} label maps, published are {_PUBLISHED:,}")
    for split, files in sources.items():
        targets = {folder / "stuffthingmaps_detectron2" / (split + ending): table for ending, table in tables().items()}
        if not any(convert_maps(files, targets, workers=args.workers).values()):
            raise InputError(f"no label map in {folder}/stuffthingmaps/{split} shows any class; download it again")
    return 0


def tables() -> dict[str, np.ndarray]:
    """Ending of the folder -> table from raw value to label: the rank among its classes, holes and 255 are ignored."""
    facts = segmentation_facts("coco_stuff_171")
    raw = facts["raw_png_value"]
    parts = {"": range(len(raw)), "_base": facts["seen_index"], "_novel": facts["unseen_index"]}
    known = [*range(_LARGEST + 1), IGNORED]
    return {
        ending: lookup_table({raw[row]: label for label, row in enumerate(rows)}, known)
        for ending, rows in parts.items()
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
