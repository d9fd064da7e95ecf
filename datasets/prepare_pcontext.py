"""Lay out PASCAL-Context with its 59 classes.

python datasets/prepare_pcontext.py    # pcontext/{trainval_merged.json,JPEGImages} -> .../{train,val}/{image,label}
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from preparation.annotation_files import add_root
from preparation.label_maps import IGNORED, in_threads, read_map, segmentation_facts, write_map

from prompt_pretrain.annotation_fields import rle_problem
from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

_SPLITS = ("train", "val")
_MAX_SIDE = 1 << 14  # pixels; the largest image of VOC has 500


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_pcontext", description=(__doc__ or "").split("\n")[0])
    add_root(parser)
    parser.add_argument("--input", help="default: ROOT/pcontext/trainval_merged.json")
    parser.add_argument("--images", help="default: ROOT/pcontext/JPEGImages, else ROOT/VOC2010/JPEGImages")
    parser.add_argument(
        "--masks",
        help="folder with NAME.png, whose values are ids of the 459 labels, to use instead of those in --input",
    )
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="threads")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    folder = Path(args.root, "pcontext")
    source = Path(args.input or folder / "trainval_merged.json")
    content = read_json(source, with_masks=args.masks is None)
    images = Path(args.images) if args.images else _find_images(Path(args.root))
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in content.get("annos_segmentation", ()):
        objects[entry["image_id"]].append(entry)
    masks = Path(args.masks) if args.masks else None
    convert = partial(convert_image, folder=folder, images=images, objects=objects, masks=masks)
    in_threads(convert, content["images"], args.workers, "images")
    counts = Counter(image["phase"] for image in content["images"])
    print(f"wrote {folder}: " + ", ".join(f"{counts[split]:,} images of {split}" for split in _SPLITS))
    return 0


def read_json(path: Path, with_masks: bool) -> dict[str, Any]:
    """The file of images with ``image_id``, ``file_name`` and ``phase``, and of ``annos_segmentation``.

    Raises:
        InputError: no such file, or not in that format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} not found; download PASCAL-Context first, or give it by --input") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); download it again") from error
    lists = {"images": ("image_id", "file_name", "phase")}
    if with_masks:
        lists["annos_segmentation"] = ("image_id", "category_id", "segmentation")
    for key, fields in lists.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise InputError(f"{path} has no list '{key}'; expected the file trainval_merged.json of PASCAL-Context")
        for number, row in enumerate(rows):
            missing = [field for field in fields if not isinstance(row, dict) or field not in row]
            if missing:
                raise InputError(f"{path}: entry {number} of '{key}' has no '{missing[0]}'")
    for image in content["images"]:
        if image["phase"] not in _SPLITS:
            raise InputError(
                f"{path}: image {image['image_id']} has the phase {image['phase']!r}, expected train or val"
            )
    return content


def convert_image(
    image: Mapping[str, Any],
    folder: Path,
    images: Path,
    objects: Mapping[Any, list[dict[str, Any]]],
    masks: Path | None,
) -> None:
    """Copy an image and write its label map."""
    name = PurePath(image["file_name"]).name
    source, stem = images / name, PurePath(name).stem
    if not source.is_file():
        raise InputError(f"image {source} does not exist; give the folder of VOC 2010's images by --images")
    where = f"image {image['image_id']}"
    values = paint(objects.get(image["image_id"], []), where) if masks is None else read_map(masks / f"{stem}.png")
    labels = to_labels(values, where)
    target = folder / image["phase"]
    with open(source, "rb") as reader, atomic_writer(target / "image" / name) as writer:
        shutil.copyfileobj(reader, writer)
    write_map(target / "label" / f"{stem}.png", labels)


def paint(objects: Sequence[Mapping[str, Any]], where: str) -> np.ndarray:
    """(H, W) ids of the run-length encoded masks, 0 where there is none; later ones lie upon earlier ones.

    Raises:
        InputError: no masks, not run-length encoded, or of different sizes.
    """
    import pycocotools.mask as mask_util

    values = None
    for entry in objects:
        segmentation = entry["segmentation"]
        try:
            height, width = segmentation["size"]
            if not all(type(side) is int and 0 < side <= _MAX_SIDE for side in (height, width)):
                raise InputError(f"{where}: a mask has the size {height!r} x {width!r}, expected pixels")
            problem = rle_problem(segmentation, height, width)
            if problem:
                raise InputError(f"{where}: {problem}")
            if isinstance(segmentation["counts"], list):
                segmentation = mask_util.frPyObjects(segmentation, height, width)
            mask = mask_util.decode(segmentation).astype(bool)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{where}: a mask is not run-length encoded ({error!r}); download the file again"
            ) from error
        if type(entry["category_id"]) is not int or not 0 <= entry["category_id"] < 1 << 31:
            raise InputError(f"{where}: category_id is {entry['category_id']!r}, expected a whole number")
        if values is None:
            values = np.zeros((height, width), dtype=np.int64)
        if values.shape != mask.shape:
            raise InputError(f"{where} has masks of the sizes {values.shape} and {mask.shape}")
        values[mask] = entry["category_id"]
    if values is None:
        raise InputError(f"{where} has no masks; download the file again")
    return values


def to_labels(values: np.ndarray, where: str) -> np.ndarray:
    """(H, W) uint8 labels, the ranks of the 59 ids; 0 is ignored.

    Raises:
        InputError: an id that is none of them.
    """
    raw = segmentation_facts("pascal_context_59")["raw_459_label"]
    table = np.full(max(int(values.max(initial=0)), *raw) + 1, -1, dtype=np.int64)
    table[0] = IGNORED
    table[np.asarray(raw)] = np.arange(len(raw))
    labels = table[values]
    if (labels < 0).any():
        unknown = np.unique(values[labels < 0]).tolist()
        raise InputError(
            f"{where} has the ids {', '.join(map(str, unknown[:5]))}, which are none of the 59 classes and not 0; give "
            f"masks in which other labels are 0"
        )
    return labels.astype(np.uint8)


def _find_images(root: Path) -> Path:
    places = [root / "pcontext/JPEGImages", root / "VOC2010/JPEGImages"]
    for place in places:
        if place.is_dir():
            return place
    raise InputError(f"no folder {' or '.join(map(str, places))}; give VOC 2010's images by --images")


if __name__ == "__main__":
    sys.exit(run_command(main))
