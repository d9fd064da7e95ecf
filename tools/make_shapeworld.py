"""Write ShapeWorld, the synthetic world, as image folders.

    python tools/make_shapeworld.py --output data/shapeworld

The data sets "ShapeWorld" (base classes) and "ShapeWorldNovel" (unseen combinations) are then found with
DATASET.ROOT data. An interrupted run goes on with the same command; a finished world is left as it is.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from prompt_pretrain.command_line import run_command


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from tqdm import tqdm

    from prompt_pretrain.shapeworld.writers import Recipe, write_imagenet21k

    recipe = Recipe(
        num_classes=args.num_classes,
        num_novel=args.novel_classes,
        images_per_class=args.images_per_class,
        val_per_class=args.val_per_class,
        size=args.size,
        seed=args.seed,
    )
    with tqdm(desc="drawing", unit="images", unit_scale=True, disable=args.quiet) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_imagenet21k(args.output, recipe, workers=args.workers, progress=progress)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="new or empty folder for the world, or an unfinished one")
    parser.add_argument("--kind", choices=["imagenet21k"], default="imagenet21k", help="layout on disk")
    parser.add_argument("--num-classes", type=int, default=1600, help="base classes, at most 1600")
    parser.add_argument("--novel-classes", type=int, default=400, help="novel classes, at most 400")
    parser.add_argument("--images-per-class", type=int, default=16, help="mean number of training images of a class")
    parser.add_argument("--val-per-class", type=int, default=5, help="validation images of every class")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the images")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
