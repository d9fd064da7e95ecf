"""Pre-train a soft prompt on a large vocabulary (POMP), or train CoOp, CoCoOp, VPT, MaPLe, LASP or a linear probe.

    python tools/pretrain_prompt.py --config-file configs/prompt_pretrain/imagenet21k_vit_b16_ep20.yaml
    python tools/pretrain_prompt.py --config-file configs/prompt_pretrain/baselines/maple.yaml
    torchrun --nproc-per-node 8 tools/pretrain_prompt.py --config-file … TRAINER.POMP.UPDATE_CLASS_NUM all

Settings of the file are changed by KEY VALUE pairs; ``prompt_pretrain/config.py`` lists all keys. The same command
continues a run that was stopped.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prompt_pretrain import distributed
from prompt_pretrain.command_line import run_command
from prompt_pretrain.config import load_cfg


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="YAML", help="settings, e.g. one of configs/prompt_pretrain/")
    parser.add_argument("--dataset-config-file", metavar="YAML", help="merged after --config-file (published option)")
    parser.add_argument("--data-root", "--root", metavar="DIR", help="folder of the data sets; same as DATASET.ROOT")
    parser.add_argument("--output-dir", metavar="DIR", help="folder of this run; same as OUTPUT_DIR")
    parser.add_argument("--seed", help="same as SEED")
    parser.add_argument("--trainer", help="POMP, CoOp, CoCoOp, VPT, MaPLe, LASP or LinearProbe; same as TRAINER.NAME")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="continue the run in the output folder (default), or start again and delete its states and prompts",
    )
    parser.add_argument(
        "--online-augment",
        action="store_true",
        help="run the image tower on freshly augmented images in every step; same as FEATURE_CACHE.ENABLED False",
    )
    parser.add_argument("--memory-budget", metavar="SIZE", help='e.g. "8GB"; same as MEMORY_BUDGET')
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that differ from the file's")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    files = [path for path in (args.config_file, args.dataset_config_file) if path]
    cfg = load_cfg(files, [*_option_overrides(args), *args.overrides])
    # Loads torch and open_clip: after the configuration is known to be right.
    from prompt_pretrain.baselines.setup import train
    from prompt_pretrain.pretrain import TrainingInterrupted
    from prompt_pretrain.pretraining_setup import select_device

    select_device(cfg)
    name = Path(args.config_file).stem if args.config_file else "custom"
    speaks = distributed.is_main_process()
    try:
        with ExitStack() as stack:
            report = train(cfg, config_name=name, progress=_progress_bar(stack))
    except TrainingInterrupted as stopped:
        if speaks:
            print(stopped, file=sys.stderr)
        return 130
    finally:
        distributed.shutdown()
    if speaks:
        _print_report(report, cfg)
    return 0


def _option_overrides(args: argparse.Namespace) -> list[str]:
    """Options as the KEY VALUE pairs that they stand for."""
    pairs = {
        "DATASET.ROOT": args.data_root,
        "OUTPUT_DIR": args.output_dir,
        "SEED": args.seed,
        "TRAINER.NAME": args.trainer,
        "MEMORY_BUDGET": args.memory_budget,
        "RESUME": "off" if args.resume is False else None,
        "FEATURE_CACHE.ENABLED": "False" if args.online_augment else None,
    }
    return [text for key, value in pairs.items() if value is not None for text in (key, value)]


def _progress_bar(stack: ExitStack) -> Any:
    """A function that shows steps as a bar on a terminal; log lines pass above it."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    if not distributed.is_main_process():
        logging.getLogger().setLevel(logging.WARNING)
        return None
    stack.enter_context(logging_redirect_tqdm())
    bars: list[tqdm] = []

    def show(done: int, total: int, text: str) -> None:
        if not bars:
            bars.append(stack.enter_context(tqdm(total=total, initial=done - 1, unit=" steps", disable=None)))
        bars[0].set_description(text, refresh=False)
        bars[0].update(done - bars[0].n)

    return show


def _print_report(report: Any, cfg: Any) -> None:
    result = report.result
    kind = "prompt" if cfg.TRAINER.NAME in ("POMP", "CoOp") else "model"
    accuracy = {"best": result.best_accuracy, "last": result.last_accuracy}
    epochs = {"best": result.best_epoch, "last": result.last_epoch}
    paths = {"best": result.best_prompt, "last": result.last_prompt}
    for name in ("best", "last"):
        numbers = [] if accuracy[name] is None else [f"{accuracy[name]:.2f} % on {report.selection} images"]
        if name in report.tests:
            metrics = report.tests[name].metrics
            numbers.append(f"{metrics['accuracy']:.2f} % on {report.split}")
            if cfg.TEST.PER_CLASS_RESULT:
                numbers.append(f"{metrics['perclass_accuracy']:.2f} % mean per class")
        print(f"{name} {kind} (epoch {epochs[name]}): {paths[name]}" + "".join(f", {number}" for number in numbers))
    chosen = str(paths["best" if cfg.TEST.FINAL_MODEL == "best_val" else "last"])
    print(f"all numbers: {report.folder / 'results.json'} and {report.folder / 'metrics.jsonl'}")
    if cfg.TRAINER.NAME == "RPL":
        print("next, class embeddings for a detector:")
        command = ["python", "tools/regional_prompt.py", "embed", "--model", chosen, "--clip", cfg.MODEL.BACKBONE.NAME]
        print("  " + shlex.join([*command, "--annotations", "lvis_v1_train.json", "--output", "regional.safetensors"]))
        return
    if kind == "model":
        print("next, its accuracy on other data sets:")
        command = ["python", "tools/evaluate_baseline.py", "--model", chosen, "--clip", cfg.MODEL.BACKBONE.NAME]
        print("  " + shlex.join([*command, "--datasets", "NAME", "--data-root", cfg.DATASET.ROOT]))
        return
    print("next, embeddings of any vocabulary:")
    command = ["python", "tools/export_class_embeddings.py", "--prompt", chosen, "--clip", cfg.MODEL.BACKBONE.NAME]
    print("  " + shlex.join([*command, "--vocabulary", "lvis_v1", "--output", "class_embeddings.safetensors"]))


if __name__ == "__main__":
    sys.exit(run_command(main))
