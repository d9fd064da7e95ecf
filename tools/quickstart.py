"""The whole story on the CPU, without any download.

    python tools/quickstart.py

ShapeWorld is drawn, prompts are pre-trained for the tiny CLIP, class embeddings exported and images classified. Then a
small detector and a small segmenter are trained with these embeddings and tested on novel classes and other data sets.
Some ten minutes on two cores. Writes output/quickstart/report.html; an interrupted run goes on with the same command.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_pretrain.command_line import run_command

ROOT = Path(__file__).resolve().parents[1]
_FINISHED = "finished.json"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", metavar="DIR", help="default: output/quickstart, with --fast output/quickstart_fast")
    add("--fast", action="store_true", help="smaller worlds, shorter trainings: a few minutes, poor numbers")
    add("--classification-only", action="store_true", help="leave out detector and segmenter")
    add("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes that draw and read images")
    add("--config-file", default="configs/prompt_pretrain/shapeworld_tiny.yaml", help="settings of the training runs")
    add("--clip", default="shapeworld-tiny", help="CLIP to use (default: the packaged tiny one)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    folder = Path(args.output or ("output/quickstart_fast" if args.fast else "output/quickstart"))
    identity = _identity(args)
    finished = _finished(folder, identity)
    if finished:
        print(finished)
        return 0
    # Loads torch, open_clip, detectron2 and matplotlib: after the options are known to be right.
    import logging

    from quickstart_parts.page import scene_chapter, scene_numbers, scene_text
    from quickstart_parts.scenes import FAST_SCENES, FULL_SCENES, SceneSteps
    from quickstart_parts.tool_run import repository_path

    from prompt_pretrain.atomic_files import write_json
    from prompt_pretrain.pretrain import TrainingInterrupted
    from prompt_pretrain.quickstart.page import as_json, build_report, text_table
    from prompt_pretrain.quickstart.steps import FAST_PLAN, FULL_PLAN, Quickstart
    from prompt_pretrain.shapeworld_study import ShapeWorldStudy

    logging.getLogger().setLevel(logging.WARNING)  # bars and titles say it all
    plan, scene_plan = (FAST_PLAN, FAST_SCENES) if args.fast else (FULL_PLAN, FULL_SCENES)
    study = ShapeWorldStudy(
        folder,
        plan.recipe,
        config_file=repository_path(args.config_file),
        clip_name=args.clip,
        overrides=plan.overrides,
        workers=args.workers,
    )
    quickstart = Quickstart(
        folder,
        study,
        plan,
        announce=_announce,
        bar=_bar,
        show_progress=sys.stderr.isatty(),
        more=() if args.classification_only else scene_plan.expected,
    )
    scenes = None
    try:
        outcome = quickstart.run()
        if not args.classification_only:
            steps = SceneSteps(
                folder,
                scene_plan,
                clip=study.clip,
                clip_name=args.clip,
                prompt=outcome.prompts[outcome.best],
            )
            with quickstart.step("Draw scenes", "for detection and segmentation"), _bar("scenes") as bar:
                steps.draw(bar)
            trainings = quickstart.step("Train detector and segmenter", "evaluate them, draw what they find")
            with trainings, _bar("iterations") as bar:
                steps.run(bar)
            scenes = steps.outcome()
            outcome.seconds = quickstart.timings.seconds
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    page = build_report(outcome, study, [scene_chapter(scenes)] if scenes else []).save(folder)
    write_json(folder / "report.json", as_json(outcome) | (scene_numbers(scenes) if scenes else {}))
    text = "\n\n".join([text_table(outcome), *([scene_text(scenes)] if scenes else []), f"report: {page}"])
    write_json(folder / _FINISHED, {"identity": identity, "text": text})
    print(f"\n{text}")
    return 0


def _identity(args: argparse.Namespace) -> str:
    """Hash of what the report depends on: options that matter, and the code that decides what is done and shown."""
    folders = (ROOT / "tools" / "quickstart_parts", ROOT / "prompt_pretrain" / "quickstart", ROOT / "prompt_pretrain")
    sources = [Path(__file__), *(path for folder in folders for path in sorted(folder.glob("*.py")))]
    digest = hashlib.sha256(repr((args.fast, args.classification_only, args.clip, args.config_file)).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _finished(folder: Path, identity: str) -> str:
    """What an equal, finished run said; "" if there is none."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / _FINISHED).read_text(encoding="utf-8"))
        if found["identity"] == identity and (folder / "report.html").is_file():
            return found["text"]
    return ""


def _announce(step: int, steps: int, text: str, remaining: float) -> None:
    left = f"about {remaining / 60:.0f} min left" if remaining > 90 else "about a minute left"
    print(f"[{step}/{steps}] {text}: {left}", flush=True)


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar with remaining time on standard error; on a file or pipe none."""
    from tqdm import tqdm

    with tqdm(unit=f" {unit}", leave=False, disable=None, dynamic_ncols=True) as bar:

        def show(done: int, total: int, text: str) -> None:
            if not bar.total:
                bar.initial = bar.n = done  # of an earlier start: says nothing of the pace
            bar.total = total
            bar.set_description(text, refresh=False)
            bar.update(done - bar.n)

        yield show


if __name__ == "__main__":
    sys.exit(run_command(main))
