"""Encode a vocabulary into class embeddings, as Detic reads them (.npy) or with all facts (.safetensors).

    python tools/export_class_embeddings.py --template "a photo of a {}." --vocabulary "red car,traffic cone" \
        --output output/cars.safetensors
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.wording import counted

if TYPE_CHECKING:
    import torch

    from prompt_pretrain.class_embeddings import ClassEmbeddings

_DETECTION_PROMPTS = ("a", "none", "photo", "scene")
_TIES_SHOWN = 5


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export_class_embeddings",
        description=(__doc__ or "").split("\n")[0],
        epilog="Published rules: --prompt a|none|photo|scene take names as the data set spells them and ViT-B/32; a "
        "prompt file and templates take them with '_' as blank and ViT-B/16.",
    )
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--prompt", help=f"file of a learned prompt, or one of {', '.join(_DETECTION_PROMPTS)}")
    texts.add_argument(
        "--template", help="text with {}, a set (imagenet80, imagenet_select_7, vild) or a data set name"
    )
    parser.add_argument("--vocabulary", required=True, help="data set name, .txt or .json file, or 'a,b,c'")
    parser.add_argument("--output", required=True, help="file to write, .npy or .safetensors")
    parser.add_argument("--clip", help="published name, open_clip NAME/TAG, weight file or .json config")
    parser.add_argument("--clip-weights", help="weight file for the architecture that --clip names")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16", "amp"))
    spelling = parser.add_mutually_exclusive_group()
    for flag, meaning in (("fix_space", "'_' becomes a blank"), ("use_underscore", "blanks become '_'")):
        spelling.add_argument(f"--{flag}", f"--{flag.replace('_', '-')}", action="store_true", help=f"names: {meaning}")
    parser.add_argument(
        "--avg_synonyms", "--avg-synonyms", action="store_true", help="mean over a class's synonyms (templates only)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    # Load torch and open_clip: after the options are known to be right.
    from prompt_pretrain.class_embeddings import ClassEmbeddings, output_suffix
    from prompt_pretrain.class_texts import ClassTexts
    from prompt_pretrain.clip import load_clip
    from prompt_pretrain.vocabulary import find_ties, load_vocabulary

    # Everything that can be wrong is looked at before the model is loaded.
    output_suffix(args.output)
    check_output(Path(args.output))
    device = choose_device(args.device)
    spelling = "fix_space" if args.fix_space else "use_underscore" if args.use_underscore else None
    texts = ClassTexts.parse(args.prompt or args.template, spelling=spelling, average_synonyms=args.avg_synonyms)
    vocabulary = load_vocabulary(args.vocabulary)
    texts.check(vocabulary)

    name = args.clip or ("ViT-B/32" if args.prompt in _DETECTION_PROMPTS else "ViT-B/16")
    clip = load_clip(name, weights=args.clip_weights, device=device, precision=args.precision)
    embeddings = ClassEmbeddings.make(clip, vocabulary, texts)
    embeddings.save(args.output)
    print_summary(embeddings, find_ties(vocabulary.class_names), args.output)
    return 0


def check_output(path: Path) -> None:
    """Fail now rather than after the encoding where the file could not be written."""
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; give a file name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"cannot write below {folder}; choose another --output")


def choose_device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown --device {name!r}; give auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name} but no CUDA device is usable; give cpu")
    return device


def print_summary(embeddings: "ClassEmbeddings", ties: dict[str, list[int]], output: str) -> None:
    norms = embeddings.embeddings.norm(dim=1)
    repeated = sum(len(ids) - 1 for ids in ties.values())
    found = f"{counted(len(embeddings), 'class embedding')} of width {embeddings.width}"
    print(f"{found}, {embeddings.clip_id}, {embeddings.prompt}")
    print(f"row norms: min {norms.min():.3f}, mean {norms.mean():.3f}, max {norms.max():.3f}")
    if ties:
        shown = ", ".join(repr(name) for name in list(ties)[:_TIES_SHOWN])
        more = ", …" if len(ties) > _TIES_SHOWN else ""
        print(f"ties: {repeated} names repeat an earlier one, so that the earlier class always wins: {shown}{more}")
    else:
        print("ties: none")
    print(f"written to {output}")


if __name__ == "__main__":
    sys.exit(run_command(main))
