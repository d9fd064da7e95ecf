"""Turn the csv files of the Open Images Challenge 2019 into the annotation files of detection.

python datasets/prepare_openimages.py --part train    # oid/annotations/oid_challenge_2019_train_bbox.json
python datasets/prepare_openimages.py --part val      # oid/annotations/oid_challenge_2019_val_expanded.json
"""

import argparse
import csv
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from preparation.annotation_files import about, add_root, write_annotations
from preparation.image_sizes import image_sizes

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.metadata import read_columns

_BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
_LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
_HIERARCHY = "challenge-2019-label500-hierarchy.json"


class _Part(NamedTuple):
    boxes: str  # csv below oid/annotations
    labels: str
    images: str  # folder below oid
    output: str  # below oid/annotations
    expand: bool  # repeat boxes and labels for related classes
    file_name: str  # of the image {id} in its folder


_PARTS = {
    "train": _Part(
        "challenge-2019-train-detection-bbox.csv",
        "challenge-2019-train-detection-human-imagelabels.csv",
        "images",
        "oid_challenge_2019_train_bbox.json",
        False,
        "{id[0]}/{id}.jpg",
    ),
    "val": _Part(
        "challenge-2019-validation-detection-bbox.csv",
        "challenge-2019-validation-detection-human-imagelabels.csv",
        "images/validation",
        "oid_challenge_2019_val_expanded.json",
        True,
        "{id}.jpg",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_openimages", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=tuple(_PARTS), default="val", help="default: val")
    parser.add_argument("--boxes", help=f"csv with {','.join(_BOX_COLUMNS)} (default: the official file)")
    parser.add_argument("--labels", help=f"csv with {','.join(_LABEL_COLUMNS)} (default: the official file)")
    parser.add_argument("--images", help="folder of the images (default: ROOT/oid/images, /validation for val)")
    parser.add_argument("--hierarchy", help=f"default: ROOT/oid/annotations/{_HIERARCHY}")
    parser.add_argument("--output", help="default: the registered name in ROOT/oid/annotations")
    parser.add_argument(
        "--workers", type=int, default=min(16, 2 * (os.cpu_count() or 1)), help="threads that open images"
    )
    add_root(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.workers < 1:
        raise InputError(f"--workers must be positive, got {args.workers}")
    part, root = _PARTS[args.part], Path(args.root, "oid")
    sources = [
        Path(args.boxes or root / "annotations" / part.boxes),
        Path(args.labels or root / "annotations" / part.labels),
    ]
    collected = Annotations(category_ids())
    if part.expand:
        sources.append(Path(args.hierarchy or root / "annotations" / _HIERARCHY))
        collected.relate(read_hierarchy(sources[-1]))
    with about(sources[0]):
        for row in read_csv(sources[0], _BOX_COLUMNS):
            collected.add_box(row)
    with about(sources[1]):
        for row in read_csv(sources[1], _LABEL_COLUMNS):
            # In training an image without boxes teaches nothing; in an evaluation it can show what is not there.
            if part.expand or row["ImageID"] in collected.boxes:
                collected.add_label(row)
    content = collected.to_json(Path(args.images or root / part.images), part.file_name, args.workers)
    write_annotations(args.output or root / "annotations" / part.output, content, sources)
    return 0


def category_ids() -> dict[str, int]:
    """Freebase id -> category id of the 500 classes."""
    table = read_columns("openimages_challenge2019_classes.json")
    return dict(zip(table["mid"], table["id"], strict=True))


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a csv file with titles.

    Raises:
        InputError: there is no such file, or a column is missing.
    """
    if not path.is_file():
        raise InputError(f"{path} not found; download it from the Open Images Challenge 2019, or give another path")
    number = 1
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {missing[0]}; expected {','.join(columns)}")
            for row in reader:
                number = reader.line_num
                if any(row[column] is None for column in columns):
                    raise InputError(f"{path}: line {number} is too short; expected {','.join(columns)}")
                yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no csv file in UTF-8 behind line {number} ({error}); download it again") from error


def read_hierarchy(path: Path) -> dict[str, set[str]]:
    """Freebase id of a class -> those of all its ancestors in the tree of classes."""
    try:
        root = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} not found; download it from the Open Images Challenge 2019") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); download it again") from error
    ancestors: dict[str, set[str]] = defaultdict(set)
    stack: list[tuple[Mapping[str, Any], frozenset[str]]] = [(root, frozenset())]
    while stack:
        node, above = stack.pop()
        children = node.get("Subcategory", []) if isinstance(node, dict) else None
        if not isinstance(children, list) or not isinstance(node.get("LabelName"), str):
            raise InputError(f"{path} holds a node {str(node)[:60]} without LabelName or with odd Subcategory")
        ancestors[node["LabelName"]] |= above
        stack += [(child, above | {node["LabelName"]}) for child in node.get("Subcategory", ())]
    return ancestors


class Annotations:
    """Boxes and verified labels of images, as they are collected.

    Where classes are related, a box and a label that is there also count for all ancestors of their class, and a label
    that is not there for all descendants, by the rules of the challenge.

    Args:
        number_of: Freebase id -> category id; other classes are ignored.
    Attributes:
        boxes: image -> (category id, x0, y0, x1, y1 as fractions, whether it is a group).
    """

    def __init__(self, number_of: Mapping[str, int]) -> None:
        self.boxes: dict[str, list[tuple[int, float, float, float, float, bool]]] = defaultdict(list)
        self._number_of = number_of
        self._positive: dict[str, set[int]] = defaultdict(set)
        self._negative: dict[str, set[int]] = defaultdict(set)
        self._upwards = {number: [number] for number in number_of.values()}
        self._downwards = {number: [number] for number in number_of.values()}

    def relate(self, ancestors: Mapping[str, set[str]]) -> None:
        """Use a tree of classes for what is added from now on."""
        for name, above in ancestors.items():
            for number in {self._number_of[other] for other in above & self._number_of.keys() - {name}}:
                if name in self._number_of:
                    self._upwards[self._number_of[name]].append(number)
                    self._downwards[number].append(self._number_of[name])

    def add_box(self, row: Mapping[str, str]) -> None:
        own = self._number_of.get(row["LabelName"])
        if own is None:
            return
        try:
            x0, y0, x1, y1 = (float(row[key]) for key in ("XMin", "YMin", "XMax", "YMax"))
        except ValueError as error:
            raise InputError(f"a box of image {row['ImageID']} has a side that is no number: {error}") from error
        if not (-math.inf < x0 <= x1 < math.inf and -math.inf < y0 <= y1 < math.inf):
            raise InputError(
                f"a box of image {row['ImageID']} has {x0} to {x1}, {y0} to {y1}; expected minimum, maximum"
            )
        for number in self._upwards[own]:
            self.boxes[row["ImageID"]].append((number, x0, y0, x1, y1, row["IsGroupOf"] == "1"))
            self._positive[row["ImageID"]].add(number)

    def add_label(self, row: Mapping[str, str]) -> None:
        own = self._number_of.get(row["LabelName"])
        if own is None:
            return
        if row["Confidence"] not in ("0", "1"):
            raise InputError(
                f"a label of image {row['ImageID']} has the confidence {row['Confidence']!r}, expected 0 or 1"
            )
        if row["Confidence"] == "1":
            self._positive[row["ImageID"]].update(self._upwards[own])
        else:
            self._negative[row["ImageID"]].update(self._downwards[own])

    def to_json(self, folder: Path, file_name: str, workers: int) -> dict[str, Any]:
        """In Open Images' json format, images by name; those without a readable file are left out.

        Raises:
            InputError: there is no image at all.
        """
        ids = sorted(self.boxes.keys() | self._positive.keys() | self._negative.keys())
        names = [file_name.format(id=image_id) for image_id in ids]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        sizes = image_sizes([folder / name for name in names], workers)
        for image_id, name, size in zip(ids, names, sizes, strict=True):
            if size is None:
                continue
            number = len(images) + 1
            positive = self._positive[image_id]
            images.append(
                {
                    "id": number,
                    "file_name": name,
                    "width": size[0],
                    "height": size[1],
                    "pos_category_ids": sorted(positive),
                    "neg_category_ids": sorted(self._negative[image_id] - positive),
                }
            )
            for box in self.boxes.get(image_id, ()):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **_in_pixels(box, *size)})
        if not images:
            raise InputError(f"{folder} holds none of the {len(ids):,} images that are annotated; give it by --images")
        print(f"{folder}: {len(ids):,} images are annotated, {len(ids) - len(images):,} of them missing or unreadable")
        table = read_columns("openimages_challenge2019_classes.json")
        rows = zip(table["id"], table["name"], table["mid"], strict=True)
        categories = [{"id": number, "name": name, "freebase_id": mid} for number, name, mid in rows]
        return {"images": images, "annotations": annotations, "categories": categories}


def _in_pixels(box: tuple[int, float, float, float, float, bool], width: int, height: int) -> dict[str, Any]:
    number, x0, y0, x1, y1, is_group = box
    sides = [round(value, 2) for value in (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height)]
    return {"category_id": number, "bbox": sides, "area": round(sides[2] * sides[3], 2), "iscrowd": int(is_group)}


if __name__ == "__main__":
    sys.exit(run_command(main))
