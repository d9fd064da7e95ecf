"""Make the variants of LVIS v1 that detection trains and tests on.

python datasets/prepare_lvis.py norare          # lvis/lvis_v1_train.json without rare classes
python datasets/prepare_lvis.py minival         # the validation images that are in COCO's val2017
python datasets/prepare_lvis.py merge-coco      # with the boxes of COCO that LVIS lacks
python datasets/prepare_lvis.py cat-info FILE   # images and instances per category
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preparation.annotation_files import about, add_root, beside, parse, read_annotations, write_annotations, write_rows
from preparation.categories import coco_categories, count_categories

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

Content = dict[str, Any]

SAME_BOX_IOU = 0.7  # from which on a box of COCO is taken for one that LVIS has
_NAME_LENGTH = len("000000000000.jpg")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_lvis", description=(__doc__ or "").split("\n")[0])
    steps = parser.add_subparsers(required=True, metavar="STEP")

    step = steps.add_parser("norare", help="drop the annotations of rare classes")
    step.add_argument("--input", help="default: ROOT/lvis/lvis_v1_train.json")
    step.add_argument("--output", help="default: the input's name with _norare")
    step.set_defaults(run=run_norare)

    step = steps.add_parser("minival", help="keep the images of COCO's val2017")
    step.add_argument("--input", help="default: ROOT/lvis/lvis_v1_val.json")
    step.add_argument("--output", help="default: ROOT/lvis/lvis_v1_minival_inserted_image_name.json")
    step.set_defaults(run=run_minival)

    step = steps.add_parser("merge-coco", help="add the annotations of COCO that LVIS lacks")
    step.add_argument("--input", help="default: ROOT/lvis/lvis_v1_train.json")
    step.add_argument("--coco", help="default: ROOT/coco/annotations/instances_train2017.json")
    step.add_argument("--output", help="default: the input's name with +coco_mask")
    step.set_defaults(run=run_merge_coco)

    for name in ("norare", "minival", "merge-coco"):
        add_root(steps.choices[name])

    step = steps.add_parser("cat-info", help="count images and instances per category (federated loss, evaluation)")
    step.add_argument("input", help="annotation file in COCO's or LVIS' format")
    step.add_argument("--output", help="default: the input's name with _cat_info")
    step.add_argument("--add-freq", action="store_true", help="also write 'frequency': r, c or f by the image count")
    step.add_argument("--r-thresh", type=int, default=10, help="rare below this many images (default: 10)")
    step.add_argument("--c-thresh", type=int, default=100, help="common below this many images (default: 100)")
    step.set_defaults(run=run_cat_info)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return parse(build_parser(), argv)


def run_norare(args: argparse.Namespace) -> None:
    source = Path(args.input or Path(args.root, "lvis/lvis_v1_train.json"))
    content = read_annotations(source)
    with about(source):
        kept = drop_rare(content)
    dropped = len(content["annotations"]) - len(kept["annotations"])
    print(f"{source}: dropped {dropped:,} of {len(content['annotations']):,} annotations")
    write_annotations(args.output or beside(source, "_norare"), kept, [source])


def run_minival(args: argparse.Namespace) -> None:
    source = Path(args.input or Path(args.root, "lvis/lvis_v1_val.json"))
    output = args.output or Path(args.root, "lvis/lvis_v1_minival_inserted_image_name.json")
    content = read_annotations(source)
    with about(source):
        kept = keep_val2017(content)
    write_annotations(output, kept, [source])


def run_merge_coco(args: argparse.Namespace) -> None:
    source = Path(args.input or Path(args.root, "lvis/lvis_v1_train.json"))
    coco = Path(args.coco or Path(args.root, "coco/annotations/instances_train2017.json"))
    content = read_annotations(source)
    other = read_annotations(coco)
    with about(f"{source} or {coco}"):
        merged = merge_coco(content, other)
    print(f"{coco}: took {len(merged['annotations']) - len(content['annotations']):,} annotations")
    write_annotations(args.output or beside(source, "+coco_mask"), merged, [source, coco])


def run_cat_info(args: argparse.Namespace) -> None:
    if not 0 <= args.r_thresh <= args.c_thresh:
        raise InputError(f"--r-thresh {args.r_thresh} and --c-thresh {args.c_thresh} must be 0 <= r <= c")
    source = Path(args.input)
    content = read_annotations(source)
    with about(source):
        rows = count_categories(content["categories"], content["annotations"])
    if args.add_freq:
        rows = [{**row, "frequency": frequency(row["image_count"], args.r_thresh, args.c_thresh)} for row in rows]
    write_rows(args.output or beside(source, "_cat_info"), rows, "categories", [source])


def drop_rare(content: Content) -> Content:
    """The same without annotations of categories of frequency "r"; images and categories all stay."""
    missing = [row["id"] for row in content["categories"] if row.get("frequency") not in ("r", "c", "f")]
    if missing:
        raise InputError(f"category {missing[0]} has no 'frequency' r, c or f; give an annotation file of LVIS v1")
    rare = {row["id"] for row in content["categories"] if row["frequency"] == "r"}
    return {**content, "annotations": [row for row in content["annotations"] if row["category_id"] not in rare]}


def keep_val2017(content: Content) -> Content:
    """The images that ``coco_url`` places in val2017, with their ``file_name``, and the annotations of these."""
    images = []
    for image in content["images"]:
        if "coco_url" not in image:
            raise InputError(f"image {image['id']} has no 'coco_url'; give an annotation file of LVIS v1")
        parts = image["coco_url"].split("/")
        if parts[-2:-1] == ["val2017"]:
            images.append({**image, "file_name": "/".join(parts[-2:])})
    kept = {image["id"] for image in images}
    annotations = [row for row in content["annotations"] if row["image_id"] in kept]
    return {**content, "images": images, "annotations": annotations}


def merge_coco(lvis: Content, coco: Content) -> Content:
    """LVIS with the annotations of COCO whose class LVIS does not rule out and whose object it does not have.

    Images are matched by file name, and only those visited that have annotations of LVIS. An annotation is left out
    where its class is in the image's ``neg_category_ids``, or an annotation of LVIS of the same class has an IoU of its
    box of at least ``SAME_BOX_IOU``. Annotation ids are new, from 1.
    """
    lvis_id = {row["id"]: row["lvis_id"] for row in coco_categories()}
    of_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    names = {image["id"]: _file_name(image) for image in coco["images"]}
    for annotation in coco["annotations"]:
        if annotation["image_id"] in names and annotation["category_id"] in lvis_id:
            of_name[names[annotation["image_id"]]].append(annotation)
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in lvis["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    merged: list[dict[str, Any]] = []
    for image in lvis["images"]:
        own = of_image.get(image["id"], [])
        merged += own
        absent = set(image.get("neg_category_ids", ()))
        for annotation in of_name[_file_name(image)] if own else ():
            category = lvis_id[annotation["category_id"]]
            same = [row["bbox"] for row in own if row["category_id"] == category]
            if category not in absent and all(box_iou(annotation["bbox"], box) < SAME_BOX_IOU for box in same):
                merged.append({**annotation, "category_id": category, "image_id": image["id"]})
    return {**lvis, "annotations": [{**row, "id": number} for number, row in enumerate(merged, 1)]}


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes [x, y, width, height]."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    whole = one[2] * one[3] + other[2] * other[3] - shared
    return shared / whole if whole > 0 else 0.0


def frequency(image_count: int, rare_below: int, common_below: int) -> str:
    """The published rule; LVIS itself counts 10 images as rare and 100 as common."""
    return "r" if image_count < rare_below else "c" if image_count < common_below else "f"


def _file_name(image: dict[str, Any]) -> str:
    name = image.get("coco_url") or image.get("file_name")
    if not name:
        raise InputError(f"image {image['id']} has neither 'coco_url' nor 'file_name'")
    return name[-_NAME_LENGTH:]


if __name__ == "__main__":
    sys.exit(run_command(main))
