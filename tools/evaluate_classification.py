"""Zero-shot classification with one or several prompts, templates or files of class embeddings, side by side.

    python tools/evaluate_classification.py --datasets ImageNet21K --data-root data --clip ViT-B/16 \
        --prompt output/…/prompt_learner/model-best.pth.tar --template "a photo of a {}." --template imagenet80

The paper's Table 2, ten other data sets and four other domains with the paper's rows beside:
--datasets all --data-root data --json table2.json --text table2.txt (where the data belong:
docs/DATASETS_CLASSIFICATION.md)

Any folder with one sub-folder of images per class is a data set too: --datasets ImageFolder --data-root FOLDER.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from prompt_pretrain import distributed
from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.command_line import run_command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate_classification",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Give --prompt, --template and --embeddings as often as you like; NAME=VALUE names the row. Accuracies "
        "are percentages, alignment and uniformity are better the lower they are.",
    )
    add = parser.add_argument
    for flag, text in (
        ("--prompt", "file of a learned prompt"),
        ("--template", "text with {}, a set (imagenet80, imagenet_select_7, vild), own or ensemble (of each data set)"),
        ("--embeddings", "file of class embeddings, rows in the data set's label order"),
    ):
        aliases = [flag, "--templates"] if flag == "--template" else [flag]
        add(*aliases, action=_AppendSource, default=[], dest="sources", metavar="X", help=text)
    add(
        *("--datasets", "--dataset"),
        nargs="+",
        required=True,
        metavar="NAME",
        help="ImageNet21K, ImageFolder, OxfordPets …; cross-dataset (ten), cross-domain (four) or all of these",
    )
    add("--skip-missing", action="store_true", help="leave out those of these sets that are not there, and say so")
    add(
        "--data-root",
        "--root",
        default="data",
        metavar="DIR",
        help="folder of the data sets; of ImageFolder, the folder",
    )
    add("--names-file", metavar="FILE", help="class names by folder, instead of the data set's own")
    add(
        "--split",
        default="test",
        choices=("test", "val", "train"),
        help="default: test (for the ImageNets that is val)",
    )
    add("--subsample-classes", default="all", choices=("all", "base", "new"), help="all, or one half of the labels")
    add("--clip", default="ViT-B/16", help="published name, open_clip NAME/TAG, weight file or .json config")
    add("--clip-weights", metavar="FILE", help="weight file for the architecture that --clip names")
    add("--precision", default="amp", choices=("fp32", "amp"), help="of the image tower on a GPU (default amp)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--batch-size", type=_positive, default=100, help="images per process and forward pass")
    add("--num-workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that read images")
    add("--cache-dir", metavar="DIR", help="image features; default ~/.cache/prompt_pretrain/image_features")
    add("--per-class", action="store_true", help="also write every class's accuracy to the json")
    add("--json", metavar="FILE", help="write all numbers there")
    add("--text", metavar="FILE", help="write the tables there")
    args = parser.parse_args(argv)
    if not args.sources:
        args.sources = [("template", "a photo of a {}.")]
    return args


class _AppendSource(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        kind = (option_string or "").lstrip("-").removesuffix("s") if option_string != "--embeddings" else "embeddings"
        namespace.sources = [*namespace.sources, (kind, values)]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # Loads torch and open_clip: after the options are known to be right.
    from prompt_pretrain.classification.class_features import ClassFeatureSource
    from prompt_pretrain.classification.comparison import compare
    from prompt_pretrain.classification.registry import load_classification_data
    from prompt_pretrain.classification.transfer_table import TransferTable, choose_datasets, source_name
    from prompt_pretrain.clip import load_clip

    device = distributed.initialize(args.device)
    if not distributed.is_main_process():
        logging.getLogger().setLevel(logging.WARNING)
    try:
        choice = choose_datasets(args.datasets, args.data_root, skip_missing=args.skip_missing)
        sources = [ClassFeatureSource.parse(kind, value) for kind, value in args.sources]
        loaded = [
            load_classification_data(
                name,
                args.data_root,
                names_file=args.names_file,
                subsample_classes=args.subsample_classes,
                test_only=args.split != "train",
            )
            for name in choice.names
        ]
        clip = load_clip(args.clip, weights=args.clip_weights, device=device, precision=args.precision)
        comparisons = []
        texts = []
        for data in loaded:
            found = compare(
                clip,
                data,
                sources,
                split=args.split,
                cache_folder=args.cache_dir,
                batch_size=args.batch_size,
                num_workers=args.num_workers,
                progress=sys.stderr.isatty(),
            )
            comparisons.append(found)
            texts.append(found.table())
            if distributed.is_main_process():
                print(texts[-1])
        results: Any = [found.as_json(per_class=args.per_class) for found in comparisons]
        if choice.groups:
            table = TransferTable(
                comparisons,
                [source_name(source.learned_on) for source in sources],
                choice.groups,
                choice.missing,
                with_paper=args.split == "test" and args.subsample_classes == "all",
            )
            texts.append(table.text())
            results = {"data_sets": results, "table": table.as_json()}
            if distributed.is_main_process():
                print("\n" + texts[-1])
        if distributed.is_main_process():
            if args.json:
                write_json(args.json, results)
            if args.text:
                with atomic_writer(args.text, "w") as file:
                    file.write("\n".join(texts) + "\n")
    except KeyboardInterrupt:
        from prompt_pretrain.classification.cache_folder import cache_folder

        where = args.cache_dir or cache_folder("image_features")
        raise KeyboardInterrupt(f"image features so far are kept in {where}, the same command goes on") from None
    finally:
        distributed.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
