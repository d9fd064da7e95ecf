"""Compare prompts for detection on ShapeWorld (hard, regional, POMP) and write the section of docs/RESULTS.md.

    python tools/shapeworld_regional.py

Draws the data, trains the prompts and, with some of them, detectors, for three seeds. Everything lies in
output/shapeworld_regional; an interrupted comparison goes on with the same command.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from prompt_pretrain.command_line import run_command

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(argv)
    # Loads torch and detectron2: after the options are known to be right.
    from detection.shapeworld_regional import MARKERS, PROMPTS, RegionalComparison, render
    from prompt_pretrain.parts_bar import parts_bar
    from prompt_pretrain.shapeworld_results import write_section

    study = RegionalComparison(args.output, overrides=args.overrides, workers=args.workers)
    with parts_bar() as drawn:
        study.prepare(drawn)
    results = study.run(
        args.seeds,
        args.prompts or tuple(PROMPTS),
        jobs=args.jobs,
        detectors=() if args.crops_only else args.detectors,
        announce=lambda text: print(text, flush=True),
    )
    words = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join(["python", "tools/shapeworld_regional.py", *words])
    write_section(args.document, render(study, args.seeds, results, command), MARKERS)
    print(f"written to {args.document}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shapeworld_regional", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    cores = os.cpu_count() or 1
    add("--output", default="output/shapeworld_regional", metavar="DIR", help="data sets, prompts and detectors")
    add("--document", default=str(ROOT / "docs" / "RESULTS.md"), metavar="MD", help="default: docs/RESULTS.md")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--prompts", nargs="+", metavar="NAME", help="some of hard, described, rpl, rpl_web, pomp (default: all)")
    add(
        "--detectors",
        nargs="+",
        metavar="NAME",
        help="those that detectors are trained with (default: hard, rpl, pomp)",
    )
    add("--crops-only", action="store_true", help="no detectors: the accuracy on crops alone")
    add("--jobs", type=int, default=min(cores, 4), help="detectors trained side by side, one core each")
    add("--workers", type=int, default=min(cores, 8), help="processes that draw")
    add("overrides", nargs="*", metavar="KEY VALUE", help="settings for all detectors")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
