"""Evaluate trained baselines (CoCoOp, VPT, MaPLe, LASP, a linear probe) on data sets of any classes.

    python tools/evaluate_baseline.py --model output/…/prompt_learner/model.pth.tar-5 --clip ViT-B/16 \
        --datasets ImageNet --data-root data

``--datasets all`` gives the paper's Table 2, its rows beside. A CoOp or POMP prompt is evaluated by
tools/evaluate_classification.py.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from prompt_pretrain import distributed
from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.command_line import run_command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate_baseline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", nargs="+", required=True, metavar="FILE", help="files that tools/pretrain_prompt.py wrote")
    add(
        "--datasets",
        nargs="+",
        required=True,
        metavar="NAME",
        help="ImageNet, ImageFolder, OxfordPets …; cross-dataset (ten), cross-domain (four) or all of these",
    )
    add("--skip-missing", action="store_true", help="leave out those of these sets that are not there, and say so")
    add("--data-root", default="data", metavar="DIR", help="folder of the data sets; of ImageFolder, the folder")
    add("--split", default="test", choices=("test", "val"))
    add("--subsample-classes", default="all", choices=("all", "base", "new"), help="all, or one half of the labels")
    add("--clip", default="ViT-B/16", help="the CLIP that the models were trained on")
    add("--clip-weights", metavar="FILE", help="weight file for the architecture that --clip names")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--batch-size", type=int, default=100, help="images per process and forward pass")
    add("--num-workers", type=int, default=4, help="processes that read images")
    add("--cache-dir", metavar="DIR", help="image features; default ~/.cache/prompt_pretrain/image_features")
    add("--json", metavar="FILE", help="write all numbers there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # Loads torch and open_clip: after the options are known to be right.
    from prompt_pretrain.baselines.files import load_learner, read_learner_file
    from prompt_pretrain.baselines.transfer import evaluate_on
    from prompt_pretrain.classification.comparison import Comparison
    from prompt_pretrain.classification.registry import load_classification_data
    from prompt_pretrain.classification.transfer_table import TransferTable, choose_datasets, source_name
    from prompt_pretrain.clip import load_clip

    device = distributed.initialize(args.device)
    if not distributed.is_main_process():
        logging.getLogger().setLevel(logging.WARNING)
    try:
        choice = choose_datasets(args.datasets, args.data_root, skip_missing=args.skip_missing)
        loaded = [
            load_classification_data(name, args.data_root, subsample_classes=args.subsample_classes, test_only=True)
            for name in choice.names
        ]
        clip = load_clip(args.clip, weights=args.clip_weights, device=device)
        learners = [(path, load_learner(path, clip)) for path in args.model]
        comparisons = []
        for data in loaded:
            rows = [
                evaluate_on(
                    learner,
                    data,
                    split=args.split,
                    name=f"{learner.trainer} {path}" if len(learners) > 1 else learner.trainer,
                    cache_folder=args.cache_dir,
                    batch_size=args.batch_size,
                    num_workers=args.num_workers,
                    progress=sys.stderr.isatty(),
                )
                for path, learner in learners
            ]
            comparisons.append(Comparison(data.name, args.split, data.class_names, clip.clip_id, tuple(rows)))
            if distributed.is_main_process():
                print(comparisons[-1].table())
        results: Any = [found.as_json() for found in comparisons]
        if choice.groups:
            table = TransferTable(
                comparisons,
                [
                    source_name(str(dict(read_learner_file(path)["metadata"]).get("dataset", "")))
                    for path, _ in learners
                ],
                choice.groups,
                choice.missing,
                with_paper=args.split == "test" and args.subsample_classes == "all",
            )
            results = {"data_sets": results, "table": table.as_json()}
            if distributed.is_main_process():
                print("\n" + table.text())
        if args.json and distributed.is_main_process():
            write_json(args.json, results)
    finally:
        distributed.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
