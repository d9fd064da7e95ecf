"""Turn captions into image labels: a class that a caption names is a label of its image.

python datasets/prepare_captions.py coco                       # coco/annotations/captions_train2017_tags_allcaps.json
python datasets/prepare_captions.py cc3m --part train          # cc3m/train_image_info.json
python datasets/prepare_captions.py cc3m-tags --classes lvis   # cc3m/train_image_info_tags.json
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preparation.annotation_files import about, add_root, beside, parse, read_annotations, write_annotations
from preparation.categories import coco_categories, lvis_categories
from preparation.image_sizes import image_sizes

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

Content = dict[str, Any]

_CC3M = {"train": ("Train_GCC-training.tsv", "training"), "val": ("Validation_GCC-1.1.0-Validation.tsv", "validation")}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_captions", description=(__doc__ or "").split("\n")[0])
    steps = parser.add_subparsers(required=True, metavar="STEP")

    step = steps.add_parser("coco", help="label COCO's images by their captions")
    step.add_argument("--input", help="default: ROOT/coco/annotations/captions_train2017.json")
    step.add_argument("--first-caption", action="store_true", help="read only the first caption of an image, not all")
    step.add_argument("--keep-images", action="store_true", help="keep images without labels; names end in _full")
    step.add_argument("--output", help="default: the input's name with _tags_allcaps (_tags for the first caption)")
    step.set_defaults(run=run_coco)

    step = steps.add_parser("cc3m", help="list the images of Conceptual Captions with caption and size")
    step.add_argument("--part", choices=tuple(_CC3M), default="train", help="default: train")
    step.add_argument("--tsv", help=f"lines caption<TAB>url (default: ROOT/cc3m/{_CC3M['train'][0]} or the like)")
    step.add_argument(
        "--images", help="folder with NUMBER.jpg, the line from 1 (default: ROOT/cc3m/training or the like)"
    )
    step.add_argument("--output", help="default: ROOT/cc3m/PART_image_info.json")
    step.add_argument(
        "--workers", type=int, default=min(16, 2 * (os.cpu_count() or 1)), help="threads that open images"
    )
    step.set_defaults(run=run_cc3m)

    step = steps.add_parser("cc3m-tags", help="label images with captions")
    step.add_argument("--input", help="default: ROOT/cc3m/train_image_info.json")
    step.add_argument("--classes", choices=("lvis", "coco"), default="lvis", help="default: lvis")
    step.add_argument("--keep-images", action="store_true", help="keep images without labels; names end in _full")
    step.add_argument("--output", help="default: the input's name with _tags, for COCO's classes with coco_ before it")
    step.set_defaults(run=run_cc3m_tags)

    for step in steps.choices.values():
        add_root(step)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return parse(build_parser(), argv)


def run_coco(args: argparse.Namespace) -> None:
    source = Path(args.input or Path(args.root, "coco/annotations/captions_train2017.json"))
    content = read_annotations(source, ("images", "annotations"), _CAPTION_KEYS)
    with about(source):
        content = attach_captions(content)
    tagged = add_labels(content, coco_categories(), all_captions=not args.first_caption, keep_images=args.keep_images)
    ending = ("_tags" if args.first_caption else "_tags_allcaps") + ("_full" if args.keep_images else "")
    _write_tagged(args.output or beside(source, ending), tagged, content, source)


def run_cc3m(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise InputError(f"--workers must be positive, got {args.workers}")
    tsv, images = _CC3M[args.part]
    source = Path(args.tsv or Path(args.root, "cc3m", tsv))
    content = list_captioned_images(source, Path(args.images or Path(args.root, "cc3m", images)), args.workers)
    write_annotations(args.output or Path(args.root, f"cc3m/{args.part}_image_info.json"), content, [source])


def run_cc3m_tags(args: argparse.Namespace) -> None:
    source = Path(args.input or Path(args.root, "cc3m/train_image_info.json"))
    content = read_annotations(source)
    categories = lvis_categories() if args.classes == "lvis" else coco_categories()
    tagged = add_labels(content, categories, all_captions=False, keep_images=args.keep_images)
    output = beside(source, "_tags_full" if args.keep_images else "_tags")
    if args.classes == "coco":
        output = output.with_name(f"coco_{output.name}")
    _write_tagged(args.output or output, tagged, content, source)


_CAPTION_KEYS = {"images": ("file_name", "height", "width"), "annotations": ("image_id",)}


def attach_captions(content: Content) -> Content:
    """COCO's captions as ``captions`` of their images, in the order of the file."""
    captions: dict[Any, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        if "caption" not in annotation:
            raise InputError(f"annotation {annotation['id']} has no 'caption'; give a file of captions")
        captions[annotation["image_id"]].append(annotation["caption"])
    images = [
        {key: image[key] for key in ("id", "file_name", "height", "width")} | {"captions": captions[image["id"]]}
        for image in content["images"]
    ]
    return {"images": images, "annotations": [], "categories": []}


def add_labels(
    content: Content, categories: Sequence[Mapping[str, Any]], *, all_captions: bool, keep_images: bool
) -> Content:
    """The images with ``pos_category_ids`` of the categories that their captions name.

    Args:
        categories: with ``synonyms``.
        all_captions: read all captions of an image as one text instead of the first.
        keep_images: keep images of which no caption names a category.
    """
    tagger = CaptionTagger(categories)
    images = []
    for image in content["images"]:
        captions = image.get("captions", [])
        text = " ".join(captions) if all_captions else "".join(captions[:1])
        labels = tagger.find(text)
        if labels or keep_images:
            images.append({**image, "pos_category_ids": labels})
    return {"categories": list(categories), "images": images, "annotations": []}


class CaptionTagger:
    """Finds categories by their synonyms as whole words between blanks; punctuation belongs to a word.

    A text that is a synonym and nothing else names no category, as published.
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]]) -> None:
        self._categories_of: dict[tuple[str, ...], list[int]] = defaultdict(list)  # words of a name -> categories
        for row in categories:
            for synonym in row["synonyms"]:
                name = normalise(synonym)
                if name:
                    self._categories_of[tuple(name.split(" "))].append(row["id"])
        self._lengths = sorted({len(words) for words in self._categories_of})

    def find(self, text: str) -> list[int]:
        """Ids of the categories, ascending."""
        words = text.lower().split(" ")
        found: set[int] = set()
        for length in self._lengths:
            for start in range(len(words) - length + 1):
                if length < len(words):
                    found.update(self._categories_of.get(tuple(words[start : start + length]), ()))
        return sorted(found)


def normalise(synonym: str) -> str:
    """``Toy_dog_(animal)`` -> ``toy dog``."""
    return synonym.replace("_", " ").split("(")[0].lower().strip()


def list_captioned_images(tsv: Path, folder: Path, workers: int) -> Content:
    """The images of which a file was downloaded, with LVIS' categories; the id is the line.

    Raises:
        InputError: no such file, a line without a caption, or no image at all.
    """
    if not tsv.is_file():
        raise InputError(f"{tsv} not found; download it first, or give it by --tsv")
    captions = []
    try:
        with open(tsv, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                caption, tab, _ = line.rstrip("\n").partition("\t")
                if not tab or not caption.strip():
                    raise InputError(f"{tsv}: line {number} is {line[:60].rstrip()!r}, expected caption<TAB>url")
                captions.append(caption)
    except UnicodeDecodeError as error:
        raise InputError(f"{tsv} is no text in UTF-8 ({error}); download it again") from error
    rows = [(number, folder / f"{number}.jpg") for number in range(1, len(captions) + 1)]
    rows = [(number, path) for number, path in rows if path.is_file()]  # many links are dead: no file is no surprise
    images = []
    for (number, path), size in zip(rows, image_sizes([path for _, path in rows], workers), strict=True):
        if size is not None:
            image = {"id": number, "file_name": path.name, "height": size[1], "width": size[0]}
            images.append({**image, "captions": [captions[number - 1]]})
    if not images:
        raise InputError(f"{folder} holds no readable image 1.jpg, 2.jpg, ... of the {len(captions):,} lines of {tsv}")
    print(f"{tsv}: {len(captions):,} captions, {len(rows):,} images downloaded, {len(images):,} readable")
    return {"categories": lvis_categories(), "images": images, "annotations": []}


def _write_tagged(output: str | Path, tagged: Content, content: Content, source: Path) -> None:
    with_labels = sum(bool(image["pos_category_ids"]) for image in tagged["images"])
    classes = {number for image in tagged["images"] for number in image["pos_category_ids"]}
    print(
        f"{source}: captions of {with_labels:,} of {len(content['images']):,} images name "
        f"{len(classes)} of {len(tagged['categories'])} classes"
    )
    write_annotations(output, tagged, [source])


if __name__ == "__main__":
    sys.exit(run_command(main))
