"""The whole story on the CPU, without any download: world, prompt, class embeddings, classification, report.

    python tools/quickstart.py

Minutes on two cores. Writes output/quickstart/report.html; an interrupted run goes on with the same command.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prompt_pretrain.command_line import run_command

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", metavar="DIR", help="default: output/quickstart, with --fast output/quickstart_fast")
    add("--fast", action="store_true", help="a much smaller world and two epochs: half a minute, poor numbers")
    add("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes that draw and read images")
    add("--config-file", default="configs/prompt_pretrain/shapeworld_tiny.yaml", help="settings of the training runs")
    add("--clip", default="shapeworld-tiny", help="CLIP to use (default: the packaged tiny one)")
    add("--readme-picture", metavar="PNG", help="also draw the picture that the README shows")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # Loads torch, open_clip and matplotlib: after the options are known to be right.
    import logging

    from prompt_pretrain.atomic_files import write_json
    from prompt_pretrain.plots import save_png
    from prompt_pretrain.pretrain import TrainingInterrupted
    from prompt_pretrain.quickstart.page import as_json, build_report, readme_picture, text_table
    from prompt_pretrain.quickstart.steps import FAST_PLAN, FULL_PLAN, Quickstart
    from prompt_pretrain.shapeworld_study import ShapeWorldStudy

    logging.getLogger().setLevel(logging.WARNING)  # bars and titles say it all
    plan = FAST_PLAN if args.fast else FULL_PLAN
    folder = Path(args.output or ("output/quickstart_fast" if args.fast else "output/quickstart"))
    study = ShapeWorldStudy(
        folder,
        plan.recipe,
        config_file=_found(args.config_file),
        clip_name=args.clip,
        overrides=plan.overrides,
        workers=args.workers,
    )
    try:
        shown = sys.stderr.isatty()
        outcome = Quickstart(folder, study, plan, announce=_announce, bar=_bar, show_progress=shown).run()
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    page = build_report(outcome, study).save(folder)
    write_json(folder / "report.json", as_json(outcome))
    if args.readme_picture:
        save_png(args.readme_picture, readme_picture(outcome), dpi=110)
    print(f"\n{text_table(outcome)}\n\nreport: {page}")
    return 0


def _found(config_file: str) -> Path:
    """The file as given, or below the repository when started elsewhere."""
    path = Path(config_file)
    return path if path.exists() or path.is_absolute() else ROOT / path


def _announce(step: int, steps: int, text: str) -> None:
    print(f"[{step}/{steps}] {text}", flush=True)


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar with remaining time on standard error; on a file or pipe none."""
    from tqdm import tqdm

    with tqdm(unit=f" {unit}", leave=False, disable=None, dynamic_ncols=True) as bar:

        def show(done: int, total: int, text: str) -> None:
            bar.total = total
            bar.set_description(text, refresh=False)
            bar.update(done - bar.n)

        yield show


if __name__ == "__main__":
    sys.exit(run_command(main))
