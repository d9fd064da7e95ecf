"""Write a model for other runtimes, as torch.export and ONNX files that take class embeddings as an input.

    python tools/export_model.py classifier --clip shapeworld-tiny --output output/exported/classifier

Parts: classifier (images and class embeddings to logits), image-tower, text-tower (with a learned prompt, if one is
given: texts to class embeddings), detector and segmenter (an image and class embeddings to boxes, or to a score map).
--output gets .pt2 and .onnx files, whose outputs are compared with the model's, and a .json file that describes inputs
and outputs. ONNX needs: pip install -c constraints.txt -e '.[export]'. Settings of detector and segmenter follow behind
--opts as KEY VALUE pairs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

if TYPE_CHECKING:
    from prompt_pretrain.model_export import Exportable

_CLIP_PARTS = ("classifier", "image-tower", "text-tower")
_MODEL_PARTS = {"detector": "detection", "segmenter": "segmentation"}
_FORMATS = ("torch", "onnx")
_SUFFIXES = (".pt2", ".onnx", ".json")
_MOST_PIXELS = 4096  # of a side


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=(*_CLIP_PARTS, *_MODEL_PARTS), help="what to export")
    add("--output", required=True, metavar="PATH", help="files to write, without .pt2, .onnx and .json")
    add("--formats", nargs="+", choices=_FORMATS, default=list(_FORMATS), help="default: both")
    add("--tolerance", type=float, default=1e-4, metavar="T", help="largest relative difference (default: 1e-4)")
    clip = parser.add_argument_group("classifier, image-tower and text-tower")
    clip.add_argument("--clip", metavar="NAME", help="published name, open_clip NAME/TAG, weight file or .json config")
    clip.add_argument("--clip-weights", metavar="FILE", help="weight file for the architecture that --clip names")
    clip.add_argument("--prompt", metavar="FILE", help="learned prompt of the text tower; default: plain texts")
    model = parser.add_argument_group("detector and segmenter")
    model.add_argument("--config-file", metavar="FILE", help="a YAML file, or the name of one in configs/")
    model.add_argument("--weights", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS of the config")
    model.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images that the files take; default: the square of the config's shorter side for tests",
    )
    model.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config settings")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_options(args)
    # Loads torch: after the options are known to be right.
    from prompt_pretrain.model_export import (
        FORMATS,
        difference,
        export_onnx,
        export_program,
        need_onnx,
        onnx_outputs,
        program_outputs,
        save_program,
    )

    if "onnx" in args.formats:
        need_onnx()
    part = clip_part(args) if args.part in _CLIP_PARTS else model_part(args)
    program = export_program(part)
    worst = {}
    for name in dict.fromkeys(args.formats):
        path = Path(f"{args.output}{FORMATS[name]}")
        if name == "torch":
            save_program(program, path)
            run: Any = program_outputs
        else:
            export_onnx(part, program, path)
            run = onnx_outputs
        worst[name] = max(difference(run(path, each), part.run(each)) for each in (part.inputs, *part.others))
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, differs from the model by {worst[name]:.1e}", flush=True)
    describe(part, worst, args)
    bad = [name for name, found in worst.items() if not found <= args.tolerance]
    if bad:
        print(
            f"error: {' and '.join(bad)} differ by more than --tolerance {args.tolerance:g}: do not use these files",
            file=sys.stderr,
        )
        return 1
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Fail for what is wrong whatever the model is.

    Raises:
        InputError: options that are missing, belong to other parts or are out of range.
    """
    clip = {"--clip": args.clip, "--clip-weights": args.clip_weights, "--prompt": args.prompt}
    model = {"--config-file": args.config_file, "--weights": args.weights, "--image-size": args.image_size}
    model["--opts"] = args.opts or None
    of_clip = args.part in _CLIP_PARTS
    needed = "--clip" if of_clip else "--config-file"
    if (clip | model)[needed] is None:
        example = "ViT-B/16" if of_clip else "shapeworld_boxsup"
        raise InputError(f"the {args.part} needs {needed}, such as {needed} {example}")
    strange = [name for name, value in (model if of_clip else clip).items() if value is not None]
    if strange:
        raise InputError(f"the {args.part} has no {strange[0]}; leave it out")
    if args.prompt is not None and args.part != "text-tower":
        raise InputError(
            f"the {args.part} takes class embeddings, so that any prompt will do; give --prompt to the text-tower"
        )
    if args.image_size is not None and not all(1 <= side <= _MOST_PIXELS for side in args.image_size):
        raise InputError(f"--image-size {args.image_size}: sides must lie between 1 and {_MOST_PIXELS} pixels")
    if not args.tolerance > 0:
        raise InputError(f"--tolerance {args.tolerance}: it must be positive")
    check_output(args)


def check_output(args: argparse.Namespace) -> None:
    """Fail now rather than after the graph is made where files could not be written, or would replace an input.

    Raises:
        InputError: a folder, a suffix, a place without permission, the path of an input.
    """
    output = Path(args.output)
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; give the files' path without suffix, such as {output}/model")
    if output.suffix in _SUFFIXES:
        raise InputError(f"--output {output}: leave out {output.suffix}, each file gets its own suffix")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"cannot write below {folder}; choose another --output")
    written = [path for path in (Path(f"{output}{suffix}") for suffix in _SUFFIXES) if path.exists()]
    for name in (args.clip, args.clip_weights, args.prompt, args.config_file, args.weights):
        if name and any(os.path.exists(name) and path.samefile(name) for path in written):
            raise InputError(f"--output {output} would replace {name}; choose another --output")


def clip_part(args: argparse.Namespace) -> "Exportable":
    from prompt_pretrain.clip import load_clip
    from prompt_pretrain.clip_export import classifier, image_tower, text_tower
    from prompt_pretrain.prompt import load_prompt

    prompt = None if args.prompt is None else load_prompt(args.prompt)
    clip = load_clip(args.clip, weights=args.clip_weights)
    if args.part == "text-tower":
        return text_tower(clip, prompt)
    return classifier(clip) if args.part == "classifier" else image_tower(clip)


def model_part(args: argparse.Namespace) -> "Exportable":
    if args.part == "detector":
        import detection
        from detection.export import detector_part

        detector = detection.load(args.config_file, args.weights, "cpu", overrides=args.opts)
        return detector_part(detector, image_size(args, detector.cfg))
    import segmentation
    from segmentation.export import segmenter_part

    segmenter = segmentation.load(args.config_file, args.weights, "cpu", overrides=args.opts)
    return segmenter_part(segmenter, image_size(args, segmenter.cfg))


def image_size(args: argparse.Namespace, cfg: Any) -> tuple[int, int]:
    """Height and width in pixels."""
    if args.image_size is not None:
        return tuple(args.image_size)
    side = cfg.INPUT.MIN_SIZE_TEST
    if cfg.INPUT.get("TEST_INPUT_TYPE", "default") != "default":
        side = cfg.INPUT.TEST_SIZE
    return side, side


def describe(part: "Exportable", differences: dict[str, float], args: argparse.Namespace) -> None:
    """Write what a user of the files must know."""
    import torch

    from prompt_pretrain.atomic_files import write_json

    path = f"{args.output}.json"
    # Infinity is no JSON.
    measured = {name: found if found < float("inf") else None for name, found in differences.items()}
    write_json(path, part.describe() | {"differences": measured, "torch": torch.__version__})
    print(f"{path}: inputs {', '.join(part.inputs)}; outputs {', '.join(part.outputs)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
