"""Train and compare small open-vocabulary segmenters on ShapeWorld and write the numbers into docs/RESULTS.md.

    python tools/shapeworld_segmentation.py

Both stages on scenes in COCO-Stuff's format, with true and with shuffled class embeddings; single, ImageNet, ViLD,
learned and POMP prompts; evaluation on scenes in the formats of VOC, ADE20K and PASCAL-Context; three seeds. Some
half an hour on two idle cores. Every run is a process of tools/train_net.py in output/shapeworld_segmentation/runs;
an interrupted study goes on with the same command.
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
    from prompt_pretrain.parts_bar import parts_bar
    from prompt_pretrain.shapeworld_results import write_section
    from segmentation.shapeworld_study import MARKERS, SegmentationStudy, render

    study = SegmentationStudy(Path(args.output).resolve(), overrides=args.overrides)
    with parts_bar() as drawn:
        study.draw(workers=args.workers, progress=drawn)
        study.pretrain(args.seeds, workers=args.workers, progress=drawn)
    results = study.run_all(args.seeds, jobs=args.jobs, announce=lambda text: print(text, flush=True))
    words = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join(["python", "tools/shapeworld_segmentation.py", *words])
    write_section(args.document, render(study, args.seeds, results, command), MARKERS)
    print(f"written to {args.document}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shapeworld_segmentation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    cores = os.cpu_count() or 1
    add("--output", default="output/shapeworld_segmentation", metavar="DIR", help="data sets and runs")
    add("--document", default=str(ROOT / "docs" / "RESULTS.md"), metavar="MD", help="default: docs/RESULTS.md")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--jobs", type=int, default=min(cores, 4), help="runs side by side, one core each")
    add("--workers", type=int, default=min(cores, 8), help="processes that draw")
    add("overrides", nargs="*", metavar="KEY VALUE", help="settings for all runs")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
