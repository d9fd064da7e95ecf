"""Split COCO 2017 into base (seen) and novel (unseen) classes for open-vocabulary detection.

python datasets/prepare_coco_zeroshot.py split            # all files of coco/zero-shot from the official ones
python datasets/prepare_coco_zeroshot.py oriorder FILE    # FILE with the 80 categories of the official file
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from preparation.annotation_files import about, add_root, beside, parse, read_annotations, write_annotations, write_rows
from preparation.categories import count_categories

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import load_vocabulary

Content = dict[str, Any]

# Files to write per part: name -> classes kept. 48 base, 17 novel and both together; 15 classes are in none.
_GROUPS = {"seen_2": "base", "unseen_2": "novel", "all_2": "generalized"}
_FILES = {"train": ("seen_2",), "val": ("seen_2", "unseen_2", "all_2")}
_ORIGINAL_ORDER = {("train", "seen_2"), ("val", "all_2")}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_coco_zeroshot", description=(__doc__ or "").split("\n")[0])
    steps = parser.add_subparsers(required=True, metavar="STEP")

    step = steps.add_parser("split", help="keep base, novel or both classes of the official annotations")
    step.add_argument("--parts", nargs="+", choices=tuple(_FILES), default=list(_FILES), help="default: train val")
    step.add_argument("--output", help="folder (default: ROOT/coco/zero-shot)")
    step.set_defaults(run=run_split)
    add_root(step)

    step = steps.add_parser("oriorder", help="replace the categories of a file by the official 80 in their order")
    step.add_argument("input", help="annotation file of some of COCO's classes")
    step.add_argument("--categories", help="official file (default: ROOT/coco/annotations/instances_val2017.json)")
    step.add_argument("--output", help="default: the input's name with _oriorder")
    step.set_defaults(run=run_oriorder)
    add_root(step)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return parse(build_parser(), argv)


def run_split(args: argparse.Namespace) -> None:
    folder = Path(args.output or Path(args.root, "coco/zero-shot"))
    vocabulary = load_vocabulary("coco")
    for part in args.parts:
        source = Path(args.root, f"coco/annotations/instances_{part}2017.json")
        content = read_annotations(source)
        for group in _FILES[part]:
            with about(source):
                kept = keep_classes(content, vocabulary.subset(_GROUPS[group]).ids)
            output = folder / f"instances_{part}2017_{group}.json"
            write_annotations(output, kept, [source])
            if (part, group) in _ORIGINAL_ORDER:
                with about(source):
                    kept = original_order(kept, content["categories"])
                write_annotations(beside(output, "_oriorder"), kept, [source])
        if part == "train":
            # The classes without boxes in training, which the loss leaves out, are those with a count of 0 here.
            with about(source):
                rows = count_categories(kept["categories"], kept["annotations"])
            write_rows(beside(output, "_oriorder_cat_info"), rows, "categories", [source])


def run_oriorder(args: argparse.Namespace) -> None:
    official = Path(args.categories or Path(args.root, "coco/annotations/instances_val2017.json"))
    source = Path(args.input)
    categories = read_annotations(official, ("categories",))["categories"]
    content = read_annotations(source)
    with about(f"{source} or {official}"):
        content = original_order(content, categories)
    write_annotations(args.output or beside(source, "_oriorder"), content, [source, official])


def keep_classes(content: Content, category_ids: Collection[int]) -> Content:
    """The annotations of some categories, crowds too, the images that have one, and these categories."""
    wanted = set(category_ids)
    categories = [row for row in content["categories"] if row["id"] in wanted]
    if len(categories) < len(wanted):
        missing = min(wanted - {row["id"] for row in categories})
        raise InputError(f"category {missing} of COCO is missing; give the official annotations of COCO 2017")
    annotations = [row for row in content["annotations"] if row["category_id"] in wanted]
    with_any = {row["image_id"] for row in annotations}
    images = [row for row in content["images"] if row["id"] in with_any]
    return {**content, "images": images, "annotations": annotations, "categories": categories}


def original_order(content: Content, categories: Sequence[dict[str, Any]]) -> Content:
    """The same with another list of categories, of which it may use only some.

    Raises:
        InputError: it uses one that is not among them.
    """
    strange = {row["category_id"] for row in content["annotations"]} - {row["id"] for row in categories}
    if strange:
        raise InputError(f"category {min(strange)} is annotated, but not among the {len(categories)} official ones")
    return {**content, "categories": list(categories)}


if __name__ == "__main__":
    sys.exit(run_command(main))
