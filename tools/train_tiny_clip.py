"""Train the tiny CLIP on pictures and captions of ShapeWorld's base classes.

    python tools/train_tiny_clip.py --output output/tiny_clip.safetensors

Minutes on two CPU cores. An interrupted run goes on with the same command. The result loads wherever a CLIP is named:
MODEL.BACKBONE.NAME output/tiny_clip.safetensors. The packaged one, "shapeworld-tiny", comes from the defaults.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prompt_pretrain.command_line import run_command


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from tqdm import tqdm

    from prompt_pretrain.errors import InputError
    from prompt_pretrain.shapeworld.tiny_clip import TinyClipTraining, train_tiny_clip

    output = Path(args.output)
    if output.suffix != ".safetensors" or output.is_dir():
        raise InputError(f"--output {output}: expected a file that ends in .safetensors")
    if output.exists():
        raise InputError(f"--output {output} exists; choose another name or delete it")
    given = {"steps": args.steps, "batch_size": args.batch_size, "seed": args.seed}
    training = TinyClipTraining(**{name: value for name, value in given.items() if value is not None})
    with tqdm(total=training.steps, desc="training", unit="step", disable=args.quiet) as bar:

        def report(done: int, loss: float, accuracy: float) -> None:
            bar.update(done - bar.n)
            if done % 10 == 0:
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.0%}")

        train_tiny_clip(output, training, report=report)
    print(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: those of the packaged checkpoint)")
    parser.add_argument("--batch-size", type=int, help="pictures a step")
    parser.add_argument("--seed", type=int, help="of weights, pictures and captions")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
