"""Convert images and label maps of the whole ADE20K (2021_17_01) to its 847 classes.

python datasets/prepare_ade20k_full.py    # ADE20K_2021_17_01/images -> .../{images,annotations}_detectron2
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from preparation.annotation_files import add_root
from preparation.label_maps import in_threads, list_files, segmentation_facts, write_map

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

IGNORED = 65535
_SHORT_SIDE = 512  # pixels; larger images are shrunk to it
_JPEG_QUALITY = 95
_SEGMENTS = "_seg.png"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_ade20k_full", description=(__doc__ or "").split("\n")[0])
    add_root(parser)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="threads")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    folder = Path(args.root, "ADE20K_2021_17_01")
    for split in ("training", "validation"):
        # The release has images/ADE/<split>/<kind of scene>/<scene>/NAME.jpg, and NAME_seg.png beside it.
        files = list_files(folder / "images", f"**/{split}/**/*{_SEGMENTS}")
        repeated = [name for name, count in Counter(path.name for path in files).items() if count > 1]
        if repeated:
            raise InputError(f"{folder}/images holds two files {repeated[0]} for {split}; keep one of them")
        images, labels = (folder / f"{what}_detectron2" / split for what in ("images", "annotations"))
        in_threads(partial(convert, images=images, labels=labels), files, args.workers, split)
        print(f"wrote {images} and {labels}: {len(files):,} images with label maps")
    return 0


def convert(segments: Path, images: Path, labels: Path) -> None:
    """Write the image and the label map of one file of segments, shrunk alike.

    Raises:
        InputError: a file is missing or cannot be read, or their sizes differ.
    """
    stem = segments.name.removesuffix(_SEGMENTS)
    image = _open(segments.with_name(f"{stem}.jpg"))
    values = Image.fromarray(to_labels(np.asarray(_open(segments))))
    if image.size != values.size:
        raise InputError(f"{segments} is {values.size} and its image {image.size} pixels large; fetch both again")
    size = shrunk(image.size)
    if size != image.size:
        image, values = image.resize(size, Image.BILINEAR), values.resize(size, Image.NEAREST)
    with atomic_writer(images / f"{stem}.jpg") as file:
        image.save(file, format="JPEG", quality=_JPEG_QUALITY)
    write_map(labels / f"{stem}.tif", np.asarray(values))


def to_labels(segments: np.ndarray) -> np.ndarray:
    """(H, W) uint16 labels from an (H, W, 3) image of segments, in which red and green spell the object's id.

    The id is 256 times the tens of red plus green. Objects that are none of the 847 classes are ignored.
    """
    ids = segments[..., 0].astype(np.int64) // 10 * 256 + segments[..., 1]
    table = np.full(26 * 256, IGNORED, dtype=np.uint16)
    raw = segmentation_facts("ade20k_847")["raw_id"]
    table[np.asarray(raw)] = np.arange(len(raw))
    return table[ids]


def shrunk(size: tuple[int, int]) -> tuple[int, int]:
    """The size with a short side of at most 512 pixels and the same aspect ratio."""
    factor = min(1.0, _SHORT_SIDE / min(size))
    return round(size[0] * factor), round(size[1] * factor)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; is the download complete?") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); fetch it again") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
