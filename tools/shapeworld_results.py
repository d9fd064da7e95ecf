"""Run the ShapeWorld experiments and write them into docs/RESULTS.md.

    python tools/shapeworld_results.py

A quarter of an hour on two idle cores. One json per result in output/shapeworld_results: an interrupted run goes on
with the same command, and results that are there are not made again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prompt_pretrain.command_line import run_command

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="shapeworld_results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", default="output/shapeworld_results", metavar="DIR", help="world, features, runs and results")
    add("--document", default=str(ROOT / "docs" / "RESULTS.md"), metavar="MD", help="default: docs/RESULTS.md")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--images-per-class", type=int, default=8, help="mean number of training images of a base class")
    add("--val-per-class", type=int, default=5, help="test images of every class")
    add("--num-classes", type=int, default=1600, help="base classes, at most 1600")
    add("--novel-classes", type=int, default=400, help="novel classes, at most 400")
    add("--config-file", default=str(ROOT / "configs" / "prompt_pretrain" / "shapeworld_tiny.yaml"))
    add("--clip", default="shapeworld-tiny", help="CLIP to use (default: the packaged tiny one)")
    add("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes that draw and read images")
    add("overrides", nargs="*", metavar="KEY VALUE", help="settings for all runs")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # Loads torch and open_clip: after the options are known to be right.
    import logging

    from tqdm import tqdm

    from prompt_pretrain.parts_bar import parts_bar
    from prompt_pretrain.pretrain import TrainingInterrupted
    from prompt_pretrain.shapeworld.writers import Recipe
    from prompt_pretrain.shapeworld_results import ResultsGrid, render, write_section
    from prompt_pretrain.shapeworld_study import ShapeWorldStudy

    logging.getLogger().setLevel(logging.WARNING)
    recipe = Recipe(
        num_classes=args.num_classes,
        num_novel=args.novel_classes,
        images_per_class=args.images_per_class,
        val_per_class=args.val_per_class,
    )
    study = ShapeWorldStudy(
        args.output,
        recipe,
        config_file=args.config_file,
        clip_name=args.clip,
        overrides=args.overrides,
        workers=args.workers,
    )
    results = ResultsGrid(study, args.seeds)
    try:
        with parts_bar() as show:
            study.write_world(lambda done, total: show("drawing", done, total))
        study.encode_images(args.seeds, show_progress=sys.stderr.isatty())
        with parts_bar("steps") as show:
            found = results.run(lambda text: tqdm.write(text), lambda done, total, run: show(run, done, total))
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    write_section(args.document, render(study, args.seeds, found, _command(argv)))
    print(f"written to {args.document}")
    return 0


def _command(argv: Sequence[str] | None) -> str:
    """This command as typed, for the document."""
    import shlex

    words = sys.argv[1:] if argv is None else list(argv)
    return shlex.join(["python", "tools/shapeworld_results.py", *words])


if __name__ == "__main__":
    sys.exit(run_command(main))
