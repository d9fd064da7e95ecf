"""Write ShapeWorld, the synthetic world, in a layout of a well-known data set.

    python tools/make_shapeworld.py --output data/shapeworld
    python tools/make_shapeworld.py --kind lvis --output datasets/shapeworld_lvis --size 320

Kind imagenet21k: pictures of one thing each. The data sets "ShapeWorld" (base classes) and "ShapeWorldNovel" (unseen
combinations) are then found with DATASET.ROOT data. All other kinds: scenes of several things on two or three grounds,
with boxes and masks (coco, lvis), or with label maps, plain ones (sem_seg) or as COCO-Stuff, VOC, ADE20K and
PASCAL-Context have them (coco_stuff, voc, ade20k, pascal_context). An interrupted run goes on with the same command; a
finished world is left as it is.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

_PICTURES = ("images_per_class", "val_per_class")  # options of single pictures only
_SCENES = ("train_images", "val_images")  # options of scenes only
_SHARED = ("num_classes", "novel_classes", "size", "seed")
_LABEL_MAPS = ("coco_stuff", "voc", "ade20k", "pascal_context")  # formats of data sets
_FIELDS = {"novel_classes": "num_novel"}  # options that are named unlike their field of the recipe


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    foreign = _SCENES if args.kind == "imagenet21k" else _PICTURES
    for name in foreign:
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} does not apply to --kind {args.kind}; leave it out")
    own = _PICTURES if args.kind == "imagenet21k" else _SCENES
    given = {_FIELDS.get(name, name): getattr(args, name) for name in (*_SHARED, *own)}
    write = _writer(args.kind, {name: value for name, value in given.items() if value is not None})

    from tqdm import tqdm

    with tqdm(desc="drawing", unit="images", unit_scale=True, disable=args.quiet) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            write(args.output, workers=args.workers, progress=progress)
        except KeyboardInterrupt:
            drawn = f"{args.output.rstrip('/')}.partial"
            raise KeyboardInterrupt(f"what is drawn is kept in {drawn}, the same command goes on") from None
    return 0


def _writer(kind: str, settings: dict[str, int]) -> Callable[..., None]:
    from functools import partial

    if kind == "imagenet21k":
        from prompt_pretrain.shapeworld.writers import Recipe, write_imagenet21k

        return partial(write_imagenet21k, recipe=Recipe(**settings))
    from prompt_pretrain.shapeworld.annotation_writers import write_coco, write_lvis, write_sem_seg
    from prompt_pretrain.shapeworld.label_map_writers import write_label_maps
    from prompt_pretrain.shapeworld.scene_files import SceneRecipe

    if kind in _LABEL_MAPS:
        return partial(write_label_maps, kind=kind, recipe=SceneRecipe(**settings))
    writers = {"coco": write_coco, "lvis": write_lvis, "sem_seg": write_sem_seg}
    return partial(writers[kind], recipe=SceneRecipe(**settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="new or empty folder for the world, or an unfinished one")
    kinds = ["imagenet21k", "coco", "lvis", "sem_seg", *_LABEL_MAPS]
    parser.add_argument("--kind", choices=kinds, default="imagenet21k", help="layout on disk (default: imagenet21k)")
    parser.add_argument("--num-classes", type=int, help="base classes, at most 1600 (default: 1600; scenes: 80)")
    parser.add_argument("--novel-classes", type=int, help="novel classes, at most 400 (default: 400; scenes: 20)")
    parser.add_argument("--size", type=int, help="longer side of the images in pixels (default: 64; scenes: 160)")
    parser.add_argument("--seed", type=int, help="of the images (default: 0)")
    pictures = parser.add_argument_group("imagenet21k")
    pictures.add_argument("--images-per-class", type=int, help="mean number of training images of a class (16)")
    pictures.add_argument("--val-per-class", type=int, help="validation images of every class (5)")
    scenes = parser.add_argument_group("all other kinds")
    scenes.add_argument("--train-images", type=int, help="number of training images (1000)")
    scenes.add_argument("--val-images", type=int, help="number of validation images (200)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
