"""Make the image-labelled set of the 997 classes of ImageNet-21K that LVIS has.

python datasets/prepare_imagenet_lvis.py unpack     # imagenet/ImageNet-21K/*.tar -> imagenet/ImageNet-LVIS
python datasets/prepare_imagenet_lvis.py json       # imagenet/annotations/imagenet_lvis_image_info.json
"""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from preparation.annotation_files import add_root, parse, write_annotations
from preparation.categories import imagenet21k_rows, lvis_categories
from preparation.image_sizes import image_sizes
from tqdm import tqdm

from prompt_pretrain.classification.file_names import is_image_name
from prompt_pretrain.classification.tar_archives import open_index, read_member
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

logger = logging.getLogger(__name__)
_LONGEST_NAME = 250  # bytes; file systems allow 255, and what is unfinished has a longer name


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_imagenet_lvis", description=(__doc__ or "").split("\n")[0])
    steps = parser.add_subparsers(required=True, metavar="STEP")

    step = steps.add_parser("unpack", help="unpack the archives of these classes into one folder each")
    step.add_argument("--archives", help="folder with WNID.tar (default: ROOT/imagenet/ImageNet-21K)")
    step.add_argument("--output", help="folder (default: ROOT/imagenet/ImageNet-LVIS)")
    step.add_argument("--skip-missing", action="store_true", help="leave out classes without an archive")
    step.set_defaults(run=run_unpack)
    add_root(step)

    step = steps.add_parser("json", help="list the images with their label and size")
    step.add_argument("--images", help="folder with one folder per WordNet id (default: ROOT/imagenet/ImageNet-LVIS)")
    step.add_argument("--output", help="default: ROOT/imagenet/annotations/imagenet_lvis_image_info.json")
    step.add_argument(
        "--workers", type=int, default=min(16, 2 * (os.cpu_count() or 1)), help="threads that open images"
    )
    step.set_defaults(run=run_json)
    add_root(step)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return parse(build_parser(), argv)


def run_unpack(args: argparse.Namespace) -> None:
    archives = Path(args.archives or Path(args.root, "imagenet/ImageNet-21K"))
    output = Path(args.output or Path(args.root, "imagenet/ImageNet-LVIS"))
    wanted = lvis_ids()
    present = [wnid for wnid in wanted if (archives / f"{wnid}.tar").is_file()]
    missing = sorted(wanted.keys() - set(present))
    if not present or (missing and not args.skip_missing):
        raise InputError(
            f"{archives} lacks {len(missing)} of the {len(wanted)} archives, e.g. {missing[0]}.tar; download them, or "
            f"leave them out with --skip-missing"
        )
    counts: Counter[str] = Counter()
    for wnid in tqdm(present, desc="archives", unit="archive", disable=None):
        counts += unpack(archives / f"{wnid}.tar", output / wnid)
    print(
        f"{output}: {len(present)} classes; {counts['written']:,} images unpacked, {counts['present']:,} were there, "
        f"{counts['unreadable']:,} are unreadable; {len(missing)} archives are missing"
    )


def run_json(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise InputError(f"--workers must be positive, got {args.workers}")
    folder = Path(args.images or Path(args.root, "imagenet/ImageNet-LVIS"))
    content = list_images(folder, args.workers)
    output = args.output or Path(args.root, "imagenet/annotations/imagenet_lvis_image_info.json")
    write_annotations(output, content, [])


def lvis_ids() -> dict[str, int]:
    """WordNet id -> LVIS category id of the classes that both have, by WordNet id."""
    return {wnid: row["lvis_id"] for wnid, row in sorted(imagenet21k_rows().items()) if row["lvis_id"] is not None}


def unpack(archive: Path, folder: Path) -> Counter[str]:
    """Write the images of an archive into ``folder``, by their names without folders; what is there stays.

    Returns:
        How many were ``written``, ``present`` before, and ``unreadable`` (logged).
    Raises:
        InputError: the archive as a whole is damaged or none.
    """
    names = open_index(str(archive)).names
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    for name in map(os.fsdecode, names):
        target = folder / PurePosixPath(name).name
        if len(os.fsencode(target.name)) > _LONGEST_NAME:
            logger.warning("skipped %s... of %s: the name is too long for a file", name[:80], archive)
            counts["unreadable"] += 1
            continue
        if target.exists():
            counts["present"] += 1
            continue
        try:
            data = read_member(f"{archive}::{name}")
        except OSError as error:
            logger.warning("skipped %s of %s: %s", name, archive, error)
            counts["unreadable"] += 1
            continue
        unfinished = target.with_name(f".{target.name}.tmp")
        unfinished.write_bytes(data)
        unfinished.replace(target)
        counts["written"] += 1
    return counts


def list_images(folder: Path, workers: int) -> dict[str, Any]:
    """All images with one label each, in LVIS' format; ids count from 1 in the order of folders and files.

    Raises:
        InputError: no folder, no images, or a folder that is none of the classes.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; run the step unpack first")
    known = lvis_ids()
    paths, labels = [], []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if class_folder.name not in known:
            raise InputError(
                f"{class_folder} is named after none of the {len(known)} ImageNet classes that LVIS has; move it away"
            )
        files = sorted(path for path in class_folder.iterdir() if path.is_file() and is_image_name(path.name))
        paths += files
        labels += [known[class_folder.name]] * len(files)
    images = []
    for path, label, size in zip(paths, labels, image_sizes(paths, workers), strict=True):
        if size is not None:
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": f"{path.parent.name}/{path.name}",
                    "pos_category_ids": [label],
                    "width": size[0],
                    "height": size[1],
                }
            )
    if not images:
        raise InputError(f"{folder} holds no readable image; expected folders such as n02691156 with images")
    print(f"{folder}: {len(images):,} images, {len(paths) - len(images):,} files are unreadable and left out")
    counts = Counter(image["pos_category_ids"][0] for image in images)
    categories = [{**row, "image_count": counts[row["id"]]} for row in lvis_categories()]
    return {"categories": categories, "images": images, "annotations": []}


if __name__ == "__main__":
    sys.exit(run_command(main))
