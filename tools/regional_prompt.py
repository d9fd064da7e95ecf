"""Regional prompt learning: crops of objects, class embeddings, web images, rounds (docs/REGIONAL_PROMPT.md).

    python tools/regional_prompt.py crops --train lvis_v1_train.json --val lvis_v1_val.json --images coco --output crops
    python tools/pretrain_prompt.py --config-file configs/prompt_pretrain/regional/lvis_vit_b32_ep6.yaml \\
        --data-root crops --output-dir output/regional
    python tools/regional_prompt.py embed --model output/regional/prompt_learner/model.pth.tar-6 \\
        --annotations lvis_v1_train.json --output lvis_regional.safetensors

Every step takes up what an interrupted call of it left, and runs as one process; the training also under torchrun.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.wording import counted

if TYPE_CHECKING:
    from prompt_pretrain.regional.fetching import FetchLimits
    from prompt_pretrain.regional.selection import SelectionRules


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regional_prompt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(required=True, metavar="STEP")
    _add_crops(steps)
    _add_embed(steps)
    _add_index(steps)
    _add_retrieve(steps)
    _add_download(steps)
    _add_select(steps)
    _add_rounds(steps)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"{os.environ['WORLD_SIZE']} processes were started, but each step of regional_prompt is for one; torchrun "
            "is for the training between them, tools/pretrain_prompt.py"
        )
    return args.run(args) or 0


# -- steps -----------------------------------------------------------------------------------------------------------


def _add_crops(steps: Any) -> None:
    step = steps.add_parser("crops", help="cut objects out of images with LVIS annotations")
    step.set_defaults(run=run_crops)
    step.add_argument("--train", required=True, metavar="JSON", help="training annotations, e.g. lvis_v1_train.json")
    step.add_argument("--val", required=True, metavar="JSON", help="validation annotations, e.g. lvis_v1_val.json")
    step.add_argument("--images", required=True, metavar="DIR", help="folder that holds train2017 and val2017")
    step.add_argument(
        "--output", required=True, metavar="DIR", help="folder of the crops; DATASET.ROOT of the training"
    )
    _add_descriptions(step)
    step.add_argument(
        "--padding", "--scaling-factor", type=float, default=1.0, help="context per side in box sizes (default: 1.0)"
    )
    step.add_argument("--min-area", "--min-size", type=float, default=20.0, help="square pixels of a box (default: 20)")
    step.add_argument("--min-side", type=float, default=0.0, help="pixels of a box's shorter side (default: 0)")
    step.add_argument("--per-class", type=int, default=200, help="crops per class and split; 0: all (default: 200)")
    step.add_argument("--square", action="store_true", help="widen crops to squares where the image allows it")
    step.add_argument("--seed", type=int, default=3, help="of the draw of --per-class (default: 3)")
    step.add_argument("--workers", type=int, default=10, help="threads (default: 10)")


def run_crops(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from prompt_pretrain.regional.crops import CropRules, make_crops

    rules = CropRules(args.padding, args.min_area, args.min_side, args.per_class, args.square, args.seed)
    bars: dict[str, tqdm] = {}

    def show(split: str, done: int, total: int) -> None:
        bar = bars.setdefault(split, tqdm(total=total, desc=split, unit=" crops", disable=None))
        bar.update(done - bar.n)

    found = make_crops(
        args.train,
        args.val,
        args.images,
        args.output,
        rules=rules,
        descriptions=args.descriptions,
        workers=args.workers,
        progress=show,
    )
    for bar in bars.values():
        bar.close()
    for split, counts in found.items():
        left_out = f"{counts.too_small:,} too small, {counts.over_quota:,} beyond {args.per_class} per class"
        problems = f", {len(counts.missing):,} images missing, {len(counts.damaged):,} not usable"
        shown = problems if counts.missing or counts.damaged else ""
        print(f"{split}: {counted(counts.kept, 'crop')} of {counted(counts.boxes, 'box', 'boxes')} ({left_out}{shown})")
    print(f"written to {args.output}")


def _add_embed(steps: Any) -> None:
    step = steps.add_parser("embed", help="class embeddings of all classes, for MODEL.CLASS_EMBEDDINGS.PATH")
    step.set_defaults(run=run_embed)
    step.add_argument("--model", required=True, metavar="FILE", help="learned prompt, ours or a published checkpoint")
    _add_classes(step)
    _add_clip(step)
    step.add_argument("--output", required=True, help="file to write: .safetensors, .npy (Detic) or .pt (PromptDet)")
    step.add_argument("--base-indices", metavar="TXT", help="also write the published list of base classes there")
    step.add_argument("--entries", metavar="TXT", help="also write the published list of descriptions there")


def run_embed(args: argparse.Namespace) -> None:
    from prompt_pretrain.regional.embeddings import (
        check_suffix,
        load_classes,
        regional_embeddings,
        save_embeddings,
        write_base_indices,
        write_entries,
    )
    from prompt_pretrain.regional.learner import load_regional_prompt

    check_suffix(args.output)
    classes = load_classes(args.annotations, args.descriptions)
    learner = load_regional_prompt(args.model, _clip(args))
    embeddings = regional_embeddings(learner, classes, Path(args.annotations).stem)
    save_embeddings(embeddings, args.output)
    if args.base_indices:
        write_base_indices(classes, args.base_indices)
    if args.entries:
        write_entries(classes, args.entries)
    norms = embeddings.embeddings.norm(dim=1)
    found = f"{counted(len(embeddings), 'class embedding')} of width {embeddings.width}"
    print(f"{found}, {embeddings.clip_id}, {embeddings.prompt}")
    print(f"row norms: min {norms.min():.3f}, mean {norms.mean():.3f}, max {norms.max():.3f}")
    print(f"written to {args.output}")


def _add_index(steps: Any) -> None:
    step = steps.add_parser("index", help="make an index of the CLIP features of a folder of images")
    step.set_defaults(run=run_index)
    step.add_argument("--images", required=True, metavar="DIR", help="any folders of images")
    step.add_argument("--output", required=True, metavar="DIR", help="folder of the index")
    step.add_argument("--base-url", default="", help="address at which that folder is served; without: local paths")
    _add_clip(step)
    _add_reading(step)


def run_index(args: argparse.Namespace) -> None:
    from prompt_pretrain.regional.retrieval import build_index

    count = build_index(
        _clip(args),
        args.images,
        args.output,
        base_url=args.base_url,
        num_workers=args.num_workers,
        cache_folder=args.cache_dir,
        progress=sys.stderr.isatty(),
    )
    print(f"{args.output}: {counted(count, 'image')}")


def _add_retrieve(steps: Any) -> None:
    step = steps.add_parser("retrieve", help="look up the most similar images of each class in an index")
    step.set_defaults(run=run_retrieve)
    _add_index_options(step)
    step.add_argument("--embeddings", required=True, metavar="FILE", help="class embeddings of: embed")
    _add_classes(step)
    step.add_argument("--classes", choices=("base", "novel", "all"), default="base", help="default: base")
    step.add_argument("-k", type=int, help="addresses per class (default: 300, of novel classes 500)")
    step.add_argument("--min-score", type=float, default=-1.0, help="cosine similarity at least (default: -1)")
    step.add_argument("--output", required=True, metavar="DIR", help="one <class>.txt of addresses per class")


def run_retrieve(args: argparse.Namespace) -> None:
    from prompt_pretrain.class_embeddings import ClassEmbeddings
    from prompt_pretrain.regional.embeddings import load_classes
    from prompt_pretrain.regional.retrieval import open_index, retrieve

    classes = _of_kind(load_classes(args.annotations, args.descriptions), args.classes)
    embeddings = ClassEmbeddings.load(args.embeddings)
    if not embeddings.class_names:
        raise InputError(f"{args.embeddings} holds no class names; give the .safetensors file that embed wrote")
    index = open_index(args.index, args.urls)
    k = args.k or (500 if args.classes == "novel" else 300)
    counts = retrieve(index, embeddings, classes, args.output, k=k, min_score=args.min_score)
    print(f"{args.output}: {sum(counts.values()):,} addresses for {len(counts):,} classes")


def _add_download(steps: Any) -> None:
    step = steps.add_parser("download", help="download the retrieved addresses, with a record of each")
    step.set_defaults(run=run_download)
    step.add_argument("--lists", required=True, metavar="DIR", help="output of: retrieve")
    step.add_argument("--output", required=True, metavar="DIR", help="images go to <class>/00000 below it")
    step.add_argument("--quota", type=int, default=0, help="images wanted per class; 0: try all addresses")
    step.add_argument("--retry-failed", action="store_true", help="ask again where an earlier call failed")
    _add_web(step)


def run_download(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from prompt_pretrain.regional.download import download, summarize

    with tqdm(unit=" classes", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        records = download(
            args.lists,
            args.output,
            quota=args.quota,
            limits=_limits(args),
            web_folder=args.web_folder,
            backend=args.backend,
            workers=args.workers,
            retry_failed=args.retry_failed,
            progress=show,
        )
    for what, count in summarize(records).items():
        print(f"{count:>9,}  {what}")
    print(f"written to {args.output}; every address has a line in <class>/records.jsonl")


def _add_select(steps: Any) -> None:
    step = steps.add_parser("select", help="choose downloaded images to train on, or to write as a detector's data set")
    step.set_defaults(run=run_select)
    step.add_argument("--downloaded", required=True, metavar="DIR", help="output of: download")
    _add_classes(step)
    step.add_argument("--crops", metavar="DIR", help="with these crops: write training_set.json, a DATASET.ROOT")
    step.add_argument("--detector-json", metavar="JSON", help="images of novel classes in COCO's format")
    step.add_argument("--output", metavar="DIR", help="folder of training_set.json")
    _add_selection(step)
    step.add_argument("--embeddings", metavar="FILE", help="class embeddings, for --rescore and --copy-above")
    _add_clip(step)
    _add_reading(step)


def run_select(args: argparse.Namespace) -> None:
    from prompt_pretrain.class_embeddings import ClassEmbeddings
    from prompt_pretrain.regional.crop_data import TrainingSet, read_regional_crops
    from prompt_pretrain.regional.embeddings import load_classes
    from prompt_pretrain.regional.selection import select, write_detector_json

    if bool(args.crops) != bool(args.output) or bool(args.crops) == bool(args.detector_json):
        raise InputError("give either --crops and --output (to train on), or --detector-json")
    classes = load_classes(args.annotations, args.descriptions)
    rules = _selection(args, 200 if args.crops else 300)
    if rules.needs_features and not args.embeddings:
        raise InputError("--rescore and --copy-above compare images with class embeddings; give --embeddings too")
    if args.crops:
        trained = read_regional_crops(args.crops, test_only=True)
        wanted, avoid = [item for item in classes if item.folder in trained.folders], trained.test
    else:
        wanted, avoid = [item for item in classes if not item.base], ()
    chosen = select(
        args.downloaded,
        wanted,
        rules,
        clip=_clip(args) if rules.needs_features else None,
        embeddings=ClassEmbeddings.load(args.embeddings) if args.embeddings else None,
        avoid=avoid,
        cache_folder=args.cache_dir,
        num_workers=args.num_workers,
    )
    if args.crops:
        TrainingSet(Path(args.crops), chosen).save(args.output)
        print(f"{sum(map(len, chosen.values())):,} web images of {len(chosen):,} classes; train with DATASET.ROOT")
        print(f"written to {args.output}/training_set.json")
    else:
        count = write_detector_json(chosen, classes, args.downloaded, args.detector_json)
        print(f"{args.detector_json}: {count:,} images of {len(chosen):,} novel classes, in {args.downloaded}")


def _add_rounds(steps: Any) -> None:
    step = steps.add_parser("rounds", help="train, embed, retrieve, download, select and train again, as one command")
    step.set_defaults(run=run_rounds)
    step.add_argument("--config-file", required=True, metavar="YAML", help="of configs/prompt_pretrain/regional")
    step.add_argument("--crops", required=True, metavar="DIR", help="output of: crops")
    _add_classes(step)
    _add_index_options(step, required=False)
    step.add_argument("--output", required=True, metavar="DIR", help="everything goes there")
    step.add_argument("--rounds", type=int, default=2, help="trainings in all (default: 2)")
    step.add_argument("--patience", type=int, default=0, help="stop after this many rounds without gain; 0: never")
    step.add_argument("--candidates", type=int, default=300, help="addresses per base class (default: 300)")
    _add_selection(step)
    _add_web(step)
    step.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that differ from the file's")


def run_rounds(args: argparse.Namespace) -> int:
    from prompt_pretrain.config import load_cfg

    cfg = load_cfg(args.config_file, ["DATASET.ROOT", args.crops, *args.overrides])
    from prompt_pretrain.pretrain import TrainingInterrupted
    from prompt_pretrain.regional.embeddings import load_classes
    from prompt_pretrain.regional.retrieval import open_index
    from prompt_pretrain.regional.rounds import RoundRules, Rounds

    rounds = Rounds(
        args.output,
        cfg,
        load_classes(args.annotations, args.descriptions),
        open_index(args.index, args.urls) if args.index else None,
        RoundRules(args.rounds, args.candidates, _selection(args, 200), _limits(args), args.patience),
        web_folder=args.web_folder,
        backend=args.backend,
        workers=args.workers,
    )
    try:
        done = rounds.run()
    except TrainingInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    best = rounds.best(done)
    print(f"best round {best['round']}: {best['prompt']}")
    print(f"its class embeddings, for MODEL.CLASS_EMBEDDINGS.PATH: {best['embeddings']}")
    return 0


# -- shared options --------------------------------------------------------------------------------------------------


def _add_descriptions(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--descriptions", metavar="FILE", help="class descriptions, .json or .txt (default: 'def' of the annotations)"
    )


def _add_classes(step: argparse.ArgumentParser) -> None:
    step.add_argument("--annotations", required=True, metavar="JSON", help="file with the categories of LVIS")
    _add_descriptions(step)


def _add_clip(step: argparse.ArgumentParser) -> None:
    step.add_argument("--clip", default="ViT-B/32", help="the CLIP of the prompt (default: ViT-B/32)")
    step.add_argument("--clip-weights", metavar="FILE", help="weight file for the architecture that --clip names")
    step.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def _add_reading(step: argparse.ArgumentParser) -> None:
    step.add_argument("--num-workers", type=int, default=4, help="processes that read images (default: 4)")
    step.add_argument("--cache-dir", metavar="DIR", help="image features; default ~/.cache/prompt_pretrain")


def _add_index_options(step: argparse.ArgumentParser, required: bool = True) -> None:
    step.add_argument("--index", required=required, metavar="PATH", help="folder of: index, or a FAISS file")
    step.add_argument("--urls", metavar="FILE", help="addresses of a FAISS file: .txt, .npy or .hdf5 (dataset/url)")


def _add_web(step: argparse.ArgumentParser) -> None:
    step.add_argument("--web-folder", metavar="DIR", help="addresses are paths below this folder")
    step.add_argument("--backend", default="auto", help="auto, img2dataset or own (default: auto)")
    step.add_argument("--workers", type=int, default=16, help="downloads at a time (default: 16)")
    step.add_argument("--timeout", type=float, default=20.0, help="seconds without a byte (default: 20)")
    step.add_argument("--total-seconds", type=float, default=60.0, help="seconds of one attempt (default: 60)")
    step.add_argument("--max-bytes", type=int, default=20_000_000, help="of a file (default: 20000000)")
    step.add_argument("--min-image-side", type=int, default=16, help="pixels (default: 16)")
    step.add_argument("--max-image-side", type=int, default=1024, help="larger ones are shrunk (default: 1024)")
    step.add_argument("--retries", type=int, default=2, help="further attempts after a passing error (default: 2)")


def _add_selection(step: argparse.ArgumentParser) -> None:
    step.add_argument("--top-k", type=int, help="images per class (default: 200; 300 for a detector)")
    step.add_argument("--rescore", action="store_true", help="order by the image's own feature instead of the index")
    step.add_argument("--min-image-score", type=float, default=-1.0, help="cosine at least, with --rescore")
    step.add_argument("--copy-above", type=float, default=1.0, help="cosine above which an image is a copy (1: never)")


def _of_kind(classes: Sequence[Any], kind: str) -> list[Any]:
    chosen = [item for item in classes if kind == "all" or item.base == (kind == "base")]
    if not chosen:
        raise InputError(f"there is no {kind} class among the {len(classes)} classes; choose other --classes")
    return chosen


def _clip(args: argparse.Namespace) -> Any:
    from prompt_pretrain import distributed
    from prompt_pretrain.clip import load_clip

    return load_clip(args.clip, weights=args.clip_weights, device=distributed.initialize(args.device))


def _limits(args: argparse.Namespace) -> "FetchLimits":
    from prompt_pretrain.regional.fetching import FetchLimits

    return FetchLimits(
        timeout=args.timeout,
        total_seconds=args.total_seconds,
        max_bytes=args.max_bytes,
        min_side=args.min_image_side,
        max_side=args.max_image_side,
        retries=args.retries,
    )


def _selection(args: argparse.Namespace, top_k: int) -> "SelectionRules":
    from prompt_pretrain.regional.selection import SelectionRules

    return SelectionRules(
        top_k if args.top_k is None else args.top_k, args.rescore, args.min_image_score, args.copy_above
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
