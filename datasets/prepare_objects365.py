"""Mend the annotations of Objects365 v2: 13 misspelt class names, images that are missing.

python datasets/prepare_objects365.py fix-names --part val
python datasets/prepare_objects365.py fix-names --part train
python datasets/prepare_objects365.py filter-missing
"""

import argparse
import csv
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preparation.annotation_files import about, add_root, beside, parse, read_annotations, write_annotations

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.metadata import read_columns

Content = dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_objects365", description=(__doc__ or "").split("\n")[0])
    steps = parser.add_subparsers(required=True, metavar="STEP")

    step = steps.add_parser("fix-names", help="correct the spelling of class names")
    step.add_argument("--part", choices=("train", "val"), default="val", help="which official file (default: val)")
    step.add_argument("--input", help="default: ROOT/objects365/annotations/zhiyuan_objv2_PART.json")
    step.add_argument("--csv", help="corrections as lines id,old,new (default: the published ones)")
    step.add_argument("--output", help="default: the input's name with _fixname")
    step.set_defaults(run=run_fix_names)
    add_root(step)

    step = steps.add_parser("filter-missing", help="drop images without a file")
    step.add_argument("--input", help="default: ROOT/objects365/annotations/zhiyuan_objv2_train_fixname.json")
    step.add_argument("--images", help="folder of the images (default: ROOT/objects365/train)")
    step.add_argument("--output", help="default: the input's name with _fixmiss")
    step.set_defaults(run=run_filter_missing)
    add_root(step)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return parse(build_parser(), argv)


def run_fix_names(args: argparse.Namespace) -> None:
    source = Path(args.input or Path(args.root, f"objects365/annotations/zhiyuan_objv2_{args.part}.json"))
    corrections = read_corrections(args.csv) if args.csv else published_corrections()
    content = read_annotations(source)
    with about(source):
        content = fix_names(content, corrections, str(source))
    write_annotations(args.output or beside(source, "_fixname"), content, [source])


def run_filter_missing(args: argparse.Namespace) -> None:
    source = Path(args.input or Path(args.root, "objects365/annotations/zhiyuan_objv2_train_fixname.json"))
    folder = args.images or os.path.join(args.root, "objects365/train")
    content = read_annotations(source)
    with about(source):
        kept = drop_missing(content, folder)
    print(
        f"{folder}: {len(content['images']) - len(kept['images']):,} of {len(content['images']):,} images are missing"
    )
    write_annotations(args.output or beside(source, "_fixmiss"), kept, [source])


def published_corrections() -> dict[int, tuple[str, str]]:
    """Category id -> original and corrected name of all 365 categories."""
    table = read_columns("objects365_v2_classes.json")
    names = zip(table["original_name"], table["name"], strict=True)
    return dict(zip(table["id"], names, strict=True))


def read_corrections(path: str) -> dict[int, tuple[str, str]]:
    """The same from a file with lines ``id,old,new``; a first line of titles is skipped."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no csv file in UTF-8 ({error}); expected lines id,old,new") from error
    corrections = {}
    for number, row in enumerate(rows, 1):
        if len(row) == 3 and re.fullmatch(r"\s*[0-9]{1,18}\s*", row[0]):
            corrections[int(row[0])] = (row[1], row[2])
        elif number > 1:
            raise InputError(f"{path}: line {number} is {','.join(row)[:80]!r}, expected id,old,new")
    return corrections


def fix_names(content: Content, corrections: Mapping[int, tuple[str, str]], source: str) -> Content:
    """The same with corrected names of categories; blanks at the ends of a name do not count and stay.

    Raises:
        InputError: a category is not in ``corrections``, or has another name than the original one there.
    """
    categories = []
    for row in content["categories"]:
        name = str(row.get("name", ""))
        if row["id"] not in corrections:
            raise InputError(f"{source}: category {row['id']} ({name!r}) is not in the table of corrections")
        old, new = corrections[row["id"]]
        if name.strip() != old.strip():
            hint = "; the names are corrected already" if name.strip() == new.strip() else ""
            raise InputError(f"{source}: category {row['id']} is named {name!r}, expected {old!r}{hint}")
        categories.append({**row, "name": name if new.strip() == name.strip() else new})
    return {**content, "categories": categories}


def drop_missing(content: Content, folder: str) -> Content:
    """The same without images that are not in ``folder``; their annotations stay, and are ignored when loaded.

    Raises:
        InputError: none is there.
    """
    for image in content["images"]:
        if "file_name" not in image:
            raise InputError(f"image {image['id']} has no 'file_name'")
    images = [image for image in content["images"] if os.path.isfile(os.path.join(folder, image["file_name"]))]
    if content["images"] and not images:
        raise InputError(
            f"none of the {len(content['images']):,} images is in {folder}, e.g. {content['images'][0]['file_name']}; "
            f"give their folder by --images"
        )
    return {**content, "images": images}


if __name__ == "__main__":
    sys.exit(run_command(main))
