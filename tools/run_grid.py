"""Train and evaluate a table or figure of the paper as a grid: methods, cost, K, margins, sampling, shots, length.

    python tools/run_grid.py table1                               # on ShapeWorld, which it draws: minutes
    python tools/run_grid.py all --document docs/RESULTS.md
    python tools/run_grid.py table8 --scale published --data-root data --seeds 42

Grids: table1, table3, table8, table9, table12, shots and length (Figure 9), hierarchy; K = all is a row of each. One
json per result in the output folder: an interrupted grid goes on with the same command, and a setting that stands in
several grids is trained once. Each grid leaves KEY.json, KEY.md and KEY.png there.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scale", default="shapeworld", choices=("shapeworld", "published"), help="data and settings of the rows")
    add("--output", metavar="DIR", help="default: output/grids_<scale>")
    add("--data-root", metavar="DIR", help="folder of the data sets; default data, of ShapeWorld drawn in the output")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--evaluate", nargs="+", metavar="COLUMN=SET,SET", help="columns of the table; default: those of the scale")
    add("--document", metavar="MD", help="also put the tables there, and the plots into images/ beside it")
    add("--num-classes", type=int, default=200, help="base classes of ShapeWorld")
    add("--novel-classes", type=int, default=50, help="novel classes of ShapeWorld")
    add("--images-per-class", type=int, default=8, help="mean number of training images of a base class")
    add("--val-per-class", type=int, default=8, help="test images of every class")
    add("--workers", type=int, default=0, help="processes that draw and read images")
    add("words", nargs="*", metavar="GRID | KEY VALUE", help="grids, or all; then settings for all runs")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    grids, overrides = _split(args.words)
    # Loads torch and open_clip: after the options are known to be right.
    import logging

    from tqdm import tqdm

    from prompt_pretrain.grid_runner import GridRunner
    from prompt_pretrain.grids import SCALES, grid_names, paper_grid
    from prompt_pretrain.parts_bar import parts_bar
    from prompt_pretrain.pretrain import TrainingInterrupted
    from prompt_pretrain.shapeworld.writers import Recipe, write_imagenet21k

    logging.getLogger().setLevel(logging.WARNING)
    scale = SCALES[args.scale]
    chosen = [paper_grid(key, scale) for key in (grid_names() if grids == ["all"] else grids)]
    output = Path(args.output or f"output/grids_{scale.name}")
    data_root = Path(args.data_root or (output / "data" if scale.name == "shapeworld" else "data"))
    evaluation = _columns(args.evaluate) if args.evaluate else scale.evaluation
    runner = GridRunner(
        output,
        config_folder=ROOT / "configs" / "prompt_pretrain",
        data_root=data_root,
        evaluation=evaluation,
        seeds=args.seeds,
        overrides=overrides,
        workers=args.workers,
    )
    if scale.name == "shapeworld" and not args.data_root:
        recipe = Recipe(
            num_classes=args.num_classes,
            num_novel=args.novel_classes,
            images_per_class=args.images_per_class,
            val_per_class=args.val_per_class,
        )
        write_imagenet21k(data_root / "shapeworld", recipe, workers=max(args.workers, 1))
    try:
        for grid in chosen:
            with parts_bar("steps") as show:
                found = runner.run(grid, lambda text: tqdm.write(text), lambda done, total, run: show(run, done, total))
            _write(grid, found, output, args.document)
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    if args.document:
        _write_document(args, chosen, runner, scale.name, shlex.join(sys.argv[1:] if argv is None else argv))
    print(f"tables and plots are in {output}")
    return 0


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of grids, and the KEY VALUE pairs behind them."""
    first = next((index for index, word in enumerate(words) if "." in word or word.isupper()), len(words))
    if not first:
        raise InputError("no grid given; name table1, table3, table8, table9, table12, shots, length, hierarchy or all")
    return list(words[:first]), list(words[first:])


def _columns(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    columns = {}
    for text in texts:
        name, _, sets = text.partition("=")
        columns[name] = tuple((sets or name).split(","))
    return columns


def _write(grid: Any, found: Any, output: Path, document: str | None) -> None:
    from prompt_pretrain.atomic_files import atomic_writer, write_json
    from prompt_pretrain.grid_report import grid_figure, grid_table
    from prompt_pretrain.plots import save_png
    from prompt_pretrain.report import Report

    report = Report(grid.title)
    report.add(grid_table(grid, found))
    with atomic_writer(output / f"{grid.key}.md", "w") as file:
        file.write(report.markdown())
    write_json(output / f"{grid.key}.json", {"title": grid.title, "results": found})
    figure = grid_figure(grid, found)
    save_png(output / f"{grid.key}.png", figure)
    if document:
        save_png(Path(document).parent / "images" / f"grid_{grid.key}.png", figure, dpi=90)
    print(report.markdown())


def _write_document(args: argparse.Namespace, chosen: Sequence[Any], runner: Any, scale: str, words: str) -> None:
    from prompt_pretrain.grid_report import grid_table
    from prompt_pretrain.report import Commands, Report, Text
    from prompt_pretrain.shapeworld_results import machine, write_section

    report = Report(f"Baselines and ablations, {scale} scale")
    if scale == "shapeworld" and not args.data_root:
        report.add(
            Text(
                f"ShapeWorld with {args.num_classes} base classes, {args.images_per_class} training images of each on "
                f"average, and {args.novel_classes} novel ones, which are unseen combinations of seen attributes; "
                f"{args.val_per_class} test images of every class. The CLIP is the tiny one, `shapeworld-tiny`."
            )
        )
    report.add(
        Text(
            "Top-1 accuracy in percent, mean ± standard deviation over the training seeds "
            f"{', '.join(map(str, args.seeds))}; the last epoch of every run. Seconds are processor time on a CPU, "
            f"wall-clock time on a GPU. Made on {machine()}."
        ),
        Commands([f"python tools/run_grid.py {words}"]),
    )
    for grid in chosen:
        report.section(grid.title)
        report.add(
            grid_table(grid, runner.run(grid, lambda text: None)),
            Text(f"![{grid.title}]({os.path.join('images', f'grid_{grid.key}.png')})"),
        )
    begin, end = (f"<!-- grids, {scale} scale: {word} -->" for word in ("begin", "end"))
    write_section(args.document, report.markdown(), (begin, end))


if __name__ == "__main__":
    sys.exit(run_command(main))
