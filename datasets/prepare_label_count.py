"""List the classes in each label map, for data sets with one record per class of an image.

python datasets/prepare_label_count.py               # of COCO-Stuff and VOC: FOLDER_label_count.json beside each FOLDER
python datasets/prepare_label_count.py FOLDER ...    # of other folders of label maps
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from preparation.annotation_files import add_root
from preparation.label_maps import IGNORED, in_threads, list_files, read_map

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

_ENDING = "_label_count.json"
_FOLDERS = tuple(
    f"{folder}/{split}{part}"
    for folder, splits in (
        ("coco/stuffthingmaps_detectron2", ("train2017", "val2017")),
        ("VOC2012/annotations_detectron2", ("train", "val")),
    )
    for split in splits
    for part in ("", "_base")
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_label_count", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="*", help=f"default: those below ROOT that exist of {', '.join(_FOLDERS)}")
    parser.add_argument("--ignore", type=int, default=IGNORED, help=f"label that is none (default: {IGNORED})")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="threads")
    add_root(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    folders = [Path(folder) for folder in args.folders]
    if not folders:
        folders = [Path(args.root, name) for name in _FOLDERS if Path(args.root, name).is_dir()]
    if not folders:
        raise InputError(f"none of {', '.join(_FOLDERS)} is below {args.root}; prepare the label maps first")
    for folder in folders:
        files = [path for path in list_files(folder, "*") if path.suffix in (".png", ".tif")]
        labels = in_threads(lambda path: labels_of(path, args.ignore), files, args.workers, folder.name)
        output = folder.with_name(folder.name + _ENDING)
        write_json(output, {path.name: found for path, found in zip(files, labels, strict=True)})
        print(f"wrote {output}: {sum(map(len, labels)):,} classes in {len(files):,} label maps")
    return 0


def labels_of(path: Path, ignored: int) -> list[int]:
    """The labels of a map, ascending."""
    return [label for label in np.unique(read_map(path)).tolist() if label != ignored]


if __name__ == "__main__":
    sys.exit(run_command(main))
