"""Make or check the split file of a cross-dataset classification set.

python datasets/prepare_split.py Caltech101 --root data    # writes data/caltech-101/split_zhou_Caltech101.json
python datasets/prepare_split.py --root data               # of every set that is there

A split file that is there is checked and stays as it is. Numbers in the literature belong to the published split files:
a new split is for use where those cannot be had. Sets with official test images keep them, and a fifth of the training
images of each class validates; the others are cut into 50 % for training, 20 % for validation and 30 % for testing per
class. The result depends on the images and --seed alone.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from preparation.raw_splits import Labelled, read_labelled

from prompt_pretrain.classification.registry import registered_name
from prompt_pretrain.classification.split_files import (
    SPLITS,
    Rows,
    SplitRow,
    class_names_of,
    missing_images,
    write_split_file,
)
from prompt_pretrain.classification.split_sets import SPLIT_SETS, difference_from_published
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

_TRAIN, _VAL = 0.5, 0.2  # shares of each class where all images are one pool
_VAL_OF_TRAIN = 0.2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare_split", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: those there are of {', '.join(SPLIT_SETS)}")
    parser.add_argument("--root", default="data", help="data root (default: data)")
    parser.add_argument("--seed", type=int, default=1, help="of the shuffle within each class (default: 1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    root = Path(args.root)
    names = [registered_name(name) for name in args.names]
    for name in names:
        if name not in SPLIT_SETS:
            raise InputError(f"{name} has no split file; those that have are {', '.join(SPLIT_SETS)}")
    names = names or [name for name, entry in SPLIT_SETS.items() if (root / entry.folder).is_dir()]
    if not names:
        raise InputError(f"none of {', '.join(entry.folder for entry in SPLIT_SETS.values())} is below {root}")
    for name in names:
        prepare(name, root, args.seed)
    return 0


def prepare(name: str, root: Path, seed: int) -> None:
    """Check the split of a set, after making it if there is none.

    Raises:
        InputError: the data set is incomplete or its split contradicts itself.
    """
    entry = SPLIT_SETS[name]
    file = entry.split_file(root)
    made = not file.exists() and name != "FGVCAircraft"
    rows = make_split(read_labelled(name, root.absolute()), seed) if made else entry.rows(root)
    class_names = class_names_of(rows, file)
    images = entry.image_folder(root)
    missing = missing_images([row for split in SPLITS for row in rows[split]], images)
    if missing:
        raise InputError(
            f"{len(missing):,} images of {name} are not in {images}, the first is {missing[0]}; extract it again"
        )
    if made:
        write_split_file(file, rows)
    counts = ", ".join(f"{len(rows[split]):,} {split}" for split in SPLITS)
    print(f"{'wrote' if made else 'checked'} {file}: {len(class_names)} classes; images: {counts}")
    if made:
        print(f"note: {file.name} is not the published split; results are not comparable with the literature")
    difference = difference_from_published(name, class_names)
    if difference:
        print(f"note: {file} has {difference}")


def make_split(images: Labelled, seed: int) -> Rows:
    """Distribute labelled images over the three splits.

    Raises:
        InputError: a class has too few images.
    """
    rng = random.Random(seed)
    rows: Rows = {split: [] for split in SPLITS}
    for label, group in _by_label(images.train).items():
        shuffled = rng.sample(group, len(group))
        if images.test is None:
            train, val = round(_TRAIN * len(group)), round(_VAL * len(group))
        else:
            val = round(_VAL_OF_TRAIN * len(group))
            train = len(group) - val
        parts = shuffled[:train], shuffled[train : train + val], shuffled[train + val :]
        if not parts[0] or (images.test is None and not parts[2]):
            raise InputError(
                f"class {label} ({group[0].class_name}) has {len(group)} images, too few to split; add some"
            )
        for split, part in zip(SPLITS, parts, strict=True):
            rows[split] += sorted(part)
    if images.test is not None:
        rows["test"] = sorted(images.test, key=lambda row: (row.label, row.path))
    return rows


def _by_label(rows: Sequence[SplitRow]) -> dict[int, list[SplitRow]]:
    groups: dict[int, list[SplitRow]] = {}
    for row in sorted(rows, key=lambda row: (row.label, row.path)):
        groups.setdefault(row.label, []).append(row)
    return groups


if __name__ == "__main__":
    sys.exit(run_command(main))
