"""Convert the label maps of PASCAL VOC 2012 with its augmented training set: 20 classes, 15 seen and 5 unseen ones.

python datasets/prepare_voc.py    # VOC2012/SegmentationClassAug -> VOC2012/annotations_detectron2
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from preparation.annotation_files import add_root
from preparation.label_maps import IGNORED, convert_maps, lookup_table, segmentation_facts

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

_LISTS = {  # looked for in this order
    "train": ("train.txt", "ImageSets/Segmentation/train_aug.txt", "ImageSets/Segmentation/trainaug.txt"),
    "val": ("val.txt", "ImageSets/Segmentation/val.txt"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_voc", description=(__doc__ or "").split("\n")[0])
    add_root(parser)
    for split, places in _LISTS.items():
        parser.add_argument(
            f"--{split}-list", help=f"file with a name per line (default: VOC2012/{' or '.join(places)})"
        )
    parser.add_argument(
        "--as-released",
        action="store_true",
        help="as the released code: validation masks among those of train_base (they leak), none in val_base, and "
        "val_novel made of training masks",
    )
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="threads")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    folder = Path(args.root, "VOC2012")
    names = {split: read_names(_find_list(folder, split, getattr(args, f"{split}_list"))) for split in _LISTS}
    both = sorted(set(names["train"]) & set(names["val"]))
    if both:
        raise InputError(
            f"the training list holds {len(both)} names of the validation list, e.g. {both[0]}; give the list of "
            "10,582 names by --train-list"
        )
    masks = folder / "SegmentationClassAug"
    sources = {split: [masks / f"{name}.png" for name in names[split]] for split in names}
    plan = _released_plan(sources) if args.as_released else _plan(sources)
    for (target, ending), files in plan.items():
        convert_maps(files, {folder / "annotations_detectron2" / target: tables()[ending]}, workers=args.workers)
    return 0


def read_names(path: Path) -> list[str]:
    """Names of the images of a list: one per line, or paths of which the last one on the line counts.

    Raises:
        InputError: no such file, or no name in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path} not found, the names of the images") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error}); expected one name per line") from error
    names = [PurePath(line.split()[-1]).stem for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path} holds no names; expected one per line")
    return list(dict.fromkeys(names))


def tables() -> dict[str, np.ndarray]:
    """Ending of the folder -> table from raw value to label: the rank among its classes, 0 and 255 are ignored."""
    facts = segmentation_facts("voc_20")
    raw = facts["raw_png_value"]
    parts = {"": range(len(raw)), "_base": facts["seen_index"], "_novel": facts["unseen_index"]}
    known = [0, *raw, IGNORED]
    return {
        ending: lookup_table({raw[row]: label for label, row in enumerate(rows)}, known)
        for ending, rows in parts.items()
    }


def _plan(sources: Mapping[str, list[Path]]) -> dict[tuple[str, str], list[Path]]:
    """(target folder, ending of its table) -> sources."""
    return {(split + ending, ending): files for split, files in sources.items() for ending in tables()}


def _released_plan(sources: Mapping[str, list[Path]]) -> dict[tuple[str, str], list[Path]]:
    plan = _plan(sources)
    plan["train_base", "_base"] = sources["train"] + sources["val"]
    plan["val_base", "_base"] = []
    plan["val_novel", "_novel"] = sources["train"]
    return plan


def _find_list(folder: Path, split: str, given: str | None) -> Path:
    if given:
        return Path(given)
    places = [folder / place for place in _LISTS[split]]
    for path in places:
        if path.is_file():
            return path
    raise InputError(f"no list of {split} images: {' or '.join(map(str, places))}; give it by --{split}-list")


if __name__ == "__main__":
    sys.exit(run_command(main))
