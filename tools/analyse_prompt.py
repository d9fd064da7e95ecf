"""What a learned prompt looks like: nearest words, distances, uniformity of its classes, pictures of the joint space.

    python tools/analyse_prompt.py --prompt output/…/model-best.pth.tar --clip ViT-B/16 --vocabulary coco \
        --output output/analysis

With --dataset and --data-root also alignment, and images in the picture.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="analyse_prompt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--prompt", required=True, help="file of a learned prompt")
    add("--clip", default="ViT-B/16", help="published name, open_clip NAME/TAG, weight file or .json config")
    add("--clip-weights", metavar="FILE", help="weight file for the architecture that --clip names")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--words", type=int, default=5, metavar="N", help="nearest words per context vector (default 5)")
    add("--class-index", type=int, metavar="I", help="of a class-specific prompt, the class whose vectors to show")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--vocabulary", help="data set name, .txt or .json file, or 'a,b,c'")
    source.add_argument("--dataset", metavar="NAME", help="classification data: its classes and images")
    add("--data-root", "--root", default="data", metavar="DIR", help="folder of the data sets")
    add("--names-file", metavar="FILE", help="class names by folder, instead of the data set's own")
    add("--split", default="test", choices=("test", "val", "train"))
    add("--template", default="a photo of a {}.", help="what to compare with (default: a photo of a {}.)")
    add("--method", default="pca", choices=("pca", "tsne"), help="of the pictures; tsne needs scikit-learn")
    add("--highlight", default="", metavar="'a,b'", help="up to 7 classes to colour (default: the first ones)")
    add("--cache-dir", metavar="DIR", help="image features; default ~/.cache/prompt_pretrain/image_features")
    add("--num-workers", type=int, default=4, help="processes that read images")
    add("--output", metavar="DIR", help="folder for analysis.json and the pictures")
    args = parser.parse_args(argv)
    if args.words < 1:
        raise InputError(f"--words must be at least 1, got {args.words}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # Loads torch, open_clip and matplotlib: after the options are known to be right.
    from prompt_pretrain import distributed
    from prompt_pretrain.atomic_files import write_json
    from prompt_pretrain.classification.registry import load_classification_data
    from prompt_pretrain.clip import load_clip
    from prompt_pretrain.plots import save_png
    from prompt_pretrain.prompt import load_prompt
    from prompt_pretrain.prompt_analysis import analyse_prompt
    from prompt_pretrain.vocabulary import load_vocabulary

    prompt = load_prompt(args.prompt)
    data = class_names = None
    if args.dataset:
        data = load_classification_data(
            args.dataset, args.data_root, names_file=args.names_file, test_only=args.split != "train"
        )
        class_names = data.class_names
    elif args.vocabulary:
        class_names = load_vocabulary(args.vocabulary).class_names
    clip = load_clip(args.clip, weights=args.clip_weights, device=distributed.initialize(args.device))
    analysis = analyse_prompt(
        clip,
        prompt,
        class_names,
        items=getattr(data, args.split) if data is not None else (),
        template=args.template,
        words=args.words,
        class_index=args.class_index,
        highlight=[name.strip() for name in args.highlight.split(",") if name.strip()],
        method=args.method,
        cache_folder=args.cache_dir,
        num_workers=args.num_workers,
        progress=sys.stderr.isatty(),
    )
    print(analysis.text())
    if args.output:
        folder = Path(args.output)
        write_json(folder / "analysis.json", analysis.as_json())
        for name, figure in analysis.figures.items():
            save_png(folder / f"{name}.png", figure)
        print(f"written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
