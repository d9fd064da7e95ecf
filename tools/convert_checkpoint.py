"""Write the weights of a checkpoint as safetensors, or wrap those of a backbone as detectron2 reads them (.pkl).

python tools/convert_checkpoint.py models/Detic_LbaseI_CLIP_R5021k_640b64_4x_ft4x_max-size.pth output/detic.safetensors
python tools/convert_checkpoint.py resnet50_miil_21k.pth models/resnet50_miil_21k.pkl --backbone
"""

import argparse
import json
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

_AUTHOR = "third_party"  # what published files of this kind say
_SUFFIXES = (".safetensors", ".pkl")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_checkpoint",
        description=(__doc__ or "").split("\n")[0],
        epilog="States of optimizer and schedule are left out: a converted file starts a training or is evaluated, it "
        "does not continue one.",
    )
    parser.add_argument("input", metavar="INPUT", help="checkpoint: .pth, .pkl or .safetensors")
    parser.add_argument("output", metavar="OUTPUT", help=f"file to write: {' or '.join(_SUFFIXES)}")
    parser.add_argument(
        "--backbone",
        action="store_true",
        help="weights of a backbone alone, under its own names: they find their place in a model by the ends of names",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    source, target = Path(args.input), Path(args.output)
    check_paths(source, target)

    from detection.checkpoint import read_checkpoint, weights_of
    from prompt_pretrain.strict_loading import CLASS_NAMES, SEEN_CLASSES, names_in

    content = read_checkpoint(str(source))
    try:
        weights = as_tensors(weights_of(content))
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error
    by_suffix = args.backbone or bool(content.get("matching_heuristics"))
    author = content.get("__author__", _AUTHOR if by_suffix else "")
    write = write_pickle if target.suffix == ".pkl" else write_weights
    names = {key: list(names_in(content, key)) for key in (CLASS_NAMES, SEEN_CLASSES) if names_in(content, key)}
    write(target, weights, by_suffix=by_suffix, author=author, names=names)

    left_out = sorted({*content} - {"model", "state_dict", "matching_heuristics", "__author__", *names})
    numbers = sum(value.numel() for value in weights.values())
    print(f"{counted(len(weights), 'entry', 'entries')} with {numbers / 1e6:.1f} million numbers")
    print(f"left out: {', '.join(left_out) or 'nothing'}")
    print(f"written to {target}")
    return 0


def check_paths(source: Path, target: Path) -> None:
    """Fail before anything is read where the result could not be written."""
    if not source.is_file():
        raise InputError(f"no checkpoint {source}; check the path")
    if target.suffix not in _SUFFIXES:
        raise InputError(f"OUTPUT {target} must end in {' or '.join(_SUFFIXES)}")
    if target.exists() and target.samefile(source):
        raise InputError(f"OUTPUT {target} is INPUT itself; choose another name")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if target.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {target}; choose another OUTPUT")


def as_tensors(weights: Mapping[str, object]) -> "dict[str, Tensor]":
    """Tensors on the CPU under names without DistributedDataParallel's prefix; none shares memory with another."""
    import numpy as np
    import torch

    tensors = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}, expected a tensor")
        tensors[name.removeprefix("module.")] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors


def write_weights(
    path: Path, weights: "Mapping[str, Tensor]", *, by_suffix: bool, author: str, names: Mapping[str, list[str]]
) -> None:
    from prompt_pretrain.atomic_files import write_safetensors

    metadata = {"format": "pt"} | {key: json.dumps(value, ensure_ascii=False) for key, value in names.items()}
    if by_suffix:
        metadata |= {"matching_heuristics": "true", "author": author}
    write_safetensors(path, weights, metadata)


def write_pickle(
    path: Path, weights: "Mapping[str, Tensor]", *, by_suffix: bool, author: str, names: Mapping[str, list[str]]
) -> None:
    from prompt_pretrain.atomic_files import atomic_writer

    arrays = {name: value.numpy() for name, value in weights.items()}
    with atomic_writer(path) as file:
        origin = {"__author__": author or _AUTHOR, "matching_heuristics": by_suffix}
        pickle.dump({"model": arrays, **origin, **names}, file)


if __name__ == "__main__":
    sys.exit(run_command(main))
