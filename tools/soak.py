"""Train for long under disturbances, and check that nothing is lost.

    python tools/soak.py --minutes 120 --output soak
    python tools/soak.py --minutes 10 --output soak --tasks prompt detection segmentation

Quick trainings on ShapeWorld (some images are damaged) run over and over, each first alone and then disturbed: killed
by SIGKILL, its newest checkpoint damaged after that, its data folder gone for a while, its disk full for a while. A
stopped training is started again with the same command until it ends. Checked: a checkpoint that was there once stays
readable, the final weights equal those of the training that nobody disturbed, commands end with a message and not with
a traceback, and neither memory nor open files grow.

The report goes to OUTPUT/soak.json after each pair of trainings, a table to the terminal; the exit code is 1 if a check
failed. Where the caller may mount a tmpfs, runs lie on one that is filled up; elsewhere a limit on file sizes stands
for the full disk.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from soaking.disturbances import KINDS
from soaking.session import Soak
from soaking.tasks import TASKS

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.minutes <= 0 or args.steps < 4:
        raise InputError(f"--minutes must be positive and --steps at least 4, got {args.minutes} and {args.steps}")
    output = Path(args.output)
    soak = Soak(
        output,
        [TASKS[name] for name in args.tasks],
        kinds=args.disturbances,
        steps=args.steps,
        seed=args.seed,
        speak=lambda text: print(text, flush=True),
        save=lambda report: write_json(output / "soak.json", report),
    )
    report = soak.run(60.0 * args.minutes)
    print(table(report))
    for problem in report["problems"]:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if report["problems"] else 0


def table(report: dict) -> str:
    """One line per training, in Markdown."""
    lines = ["| training | seconds | starts | disturbances | equal weights | RSS first to last, peak MB | open files |"]
    lines.append("|---|---:|---:|---|---|---|---:|")
    for row in report["trainings"]:
        disturbed = ", ".join(f"{count} {kind}" for kind, count in row["disturbances"].items() if count) or "none"
        equal = {None: "–", True: "yes", False: "NO"}[row["equal"]]
        memory = f"{row['rss_first_mb']:.0f} to {row['rss_last_mb']:.0f}, {row['rss_peak_mb']:.0f}"
        lines.append(
            f"| {row['task']} | {row['seconds']:.0f} | {row['starts']} | {disturbed} | {equal} | {memory} | "
            f"{row['open_files_peak']} |"
        )
    lines.append(f"\n{report['seconds']:.0f} s on {report['machine']}, disk: {report['disk']}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; the last training may take longer (10)")
    parser.add_argument("--output", default="output/soak", help="folder of data, runs and report (output/soak)")
    parser.add_argument(
        "--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS), help="trainings, in turn (all)"
    )
    parser.add_argument(
        "--disturbances", nargs="+", choices=KINDS, default=list(KINDS), help="kinds to draw from (all)"
    )
    parser.add_argument("--steps", type=int, default=60, help="steps of one training (60)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16), help="of the disturbances (random)")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
