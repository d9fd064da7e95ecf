"""ShapeWorld as image folders on disk, in the layout of ImageNet-21K-P."""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.shapeworld.classes import NUM_BASE, NUM_CLASSES, SHAPES, Thing, class_counts, things
from prompt_pretrain.shapeworld.images import render_image
from prompt_pretrain.shapeworld.world_folder import UNFINISHED, WorldFolder, check_bounds, encode_jpeg, run_jobs

FORMAT = 1  # raised when the same recipe starts to give other pictures
IMAGENET21K_FOLDER = "imagenet21k_resized"
NOVEL_FOLDER = "novel"


@dataclass(frozen=True)
class Recipe:
    """What decides every file of a written ShapeWorld.

    Attributes:
        num_classes: base classes, the first ones in label order.
        num_novel: novel classes.
        images_per_class: mean number of training images of a base class; they are long-tailed.
        val_per_class: validation images of every base and every novel class.
        size: side of the images in pixels.
        seed: of the images; classes and their frequencies do not depend on it.
    """

    num_classes: int = NUM_BASE
    num_novel: int = NUM_CLASSES - NUM_BASE
    images_per_class: int = 16
    val_per_class: int = 5
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "num_classes": (1, NUM_BASE),
            "num_novel": (1, NUM_CLASSES - NUM_BASE),
            "images_per_class": (2, 100_000),
            "val_per_class": (1, 100_000),
            "size": (16, 4096),
            "seed": (0, 2**63 - 1),
        }
        check_bounds(self, bounds)


@dataclass(frozen=True)
class _ClassFolder:
    path: str  # relative to the root
    thing: Thing
    split: str
    count: int


def write_imagenet21k(
    root: str | os.PathLike,
    recipe: Recipe | None = None,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ShapeWorld below ``root``: base classes as ImageNet-21K-P, novel classes as a test set of their own.

    ::

        root/imagenet21k_resized/imagenet21k_{train,val}/<class id>/*.jpg
        root/imagenet21k_resized/imagenet21k_miil_tree.pth      class_list, class_description, class_tree_list
        root/novel/val/<class id>/*.jpg, root/novel/classnames.txt
        root/shapeworld.json                                    the recipe

    ``root`` appears under its name when everything in it is written; until then ``<root>.partial`` holds the classes
    that are done, and the same call continues there. A finished ``root`` with the same recipe is left as it is.

    Args:
        recipe: default: all classes, 16 training images a class.
        workers: processes that draw; the files do not depend on it.
        progress: called with the images done and the total, once per class.
    Raises:
        InputError: ``root`` or its partial folder holds something else.
    """
    recipe = recipe or Recipe()
    folders = list(_class_folders(recipe))
    total = sum(folder.count for folder in folders)
    world = WorldFolder(Path(root), {"format": FORMAT, "kind": "imagenet21k"} | asdict(recipe))
    if world.is_finished():
        if progress:
            progress(total, total)
        return
    world.claim()
    partial, done = world.partial, 0
    draw = functools.partial(_draw_folder, root=partial, recipe=recipe)
    for count in run_jobs(draw, folders, workers, chunk_size=8):
        done += count
        if progress:
            progress(done, total)
    _write_tree(partial / IMAGENET21K_FOLDER / "imagenet21k_miil_tree.pth", recipe)
    names = [f"{class_id(label)} {thing.name}" for label, thing in _novel(recipe)]
    with atomic_writer(partial / NOVEL_FOLDER / "classnames.txt", "w") as file:
        file.write("\n".join(names) + "\n")
    world.publish()


def class_id(label: int) -> str:
    """Folder name of the class with this label among all classes; like a WordNet id, and sorted in label order."""
    return f"n{10_000_000 + label}"


def _base(recipe: Recipe) -> list[tuple[int, Thing]]:
    return list(enumerate(things("all")))[: recipe.num_classes]


def _novel(recipe: Recipe) -> list[tuple[int, Thing]]:
    return list(enumerate(things("all")))[NUM_BASE : NUM_BASE + recipe.num_novel]


def _class_folders(recipe: Recipe) -> Iterator[_ClassFolder]:
    base = _base(recipe)
    counts = class_counts([thing for _, thing in base], recipe.images_per_class)
    for (label, thing), count in zip(base, counts, strict=True):
        yield _ClassFolder(f"{IMAGENET21K_FOLDER}/imagenet21k_train/{class_id(label)}", thing, "train", count)
    for label, thing in base:
        path = f"{IMAGENET21K_FOLDER}/imagenet21k_val/{class_id(label)}"
        yield _ClassFolder(path, thing, "val", recipe.val_per_class)
    for label, thing in _novel(recipe):
        yield _ClassFolder(f"{NOVEL_FOLDER}/val/{class_id(label)}", thing, "val", recipe.val_per_class)


def _draw_folder(folder: _ClassFolder, *, root: Path, recipe: Recipe) -> int:
    """Write one class folder under a temporary name and rename it; nothing to do where it already stands."""
    target = root / folder.path
    if not target.is_dir():
        temporary = root / UNFINISHED / folder.path
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for index in range(folder.count):
            pixels = render_image(folder.thing, index, split=folder.split, seed=recipe.seed, size=recipe.size)
            (temporary / f"{target.name}_{index:05d}.jpg").write_bytes(encode_jpeg(pixels))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(target)
    return folder.count


def _write_tree(path: Path, recipe: Recipe) -> None:
    """The class tree: things below their shape, shapes below the root; parents stand behind all classes."""
    import torch

    base = [thing for _, thing in _base(recipe)]
    first_shape, root = len(base), len(base) + len(SHAPES)
    identifiers = [class_id(label) for label in range(first_shape)]
    identifiers += [f"n{20_000_000 + number}" for number in range(len(SHAPES))] + ["n30000000"]
    descriptions = [*(thing.name.replace(" ", "_") for thing in base), *SHAPES, "shape"]
    chains = [[label, first_shape + SHAPES.index(thing.shape), root] for label, thing in enumerate(base)]
    chains += [[first_shape + number, root] for number in range(len(SHAPES))] + [[root]]
    content = {
        "class_list": identifiers,
        "class_description": dict(zip(identifiers, descriptions, strict=True)),
        "class_tree_list": chains,
    }
    with atomic_writer(path) as file:
        torch.save(content, file)
