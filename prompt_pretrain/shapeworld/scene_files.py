"""Scenes drawn into files: images, label maps, and what annotation files will say of them.

Works in blocks of scenes. A block is done when its notes are written, so that an interrupted run goes on behind it.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.shapeworld.classes import NUM_BASE, NUM_CLASSES, Thing, things
from prompt_pretrain.shapeworld.scene_masks import (
    is_recognisable,
    label_map,
    polygons,
    run_lengths,
    tight_box,
    visible_mask,
)
from prompt_pretrain.shapeworld.scenes import SCENE_SPLITS, ClassMix, Scene, class_mix, plan_scene, render_scene
from prompt_pretrain.shapeworld.world_folder import (
    UNFINISHED,
    WorldFolder,
    check_bounds,
    encode_jpeg,
    encode_png,
    run_jobs,
)

FORMAT = 1  # raised when the same recipe starts to give other scenes or annotations
_BLOCK = 32  # scenes
_MOST_IMAGES = 1_000_000
_LONG_NAMES = {"train": "training", "val": "validation"}

Progress = Callable[[int, int], None]
Note = dict[str, Any]


@dataclass(frozen=True)
class SceneRecipe:
    """What decides every file of a world of scenes.

    The same recipe gives the same pictures, whatever the layout of the annotations.

    Attributes:
        num_classes: base classes of things, the first ones in label order; they are long-tailed.
        num_novel: novel classes, rare in the training images. Labels: base classes, then novel ones.
        train_images, val_images: number of scenes.
        size: longer side of the images in pixels.
        seed: of the scenes; classes and their frequencies do not depend on it.
    """

    num_classes: int = 80
    num_novel: int = 20
    train_images: int = 1000
    val_images: int = 200
    size: int = 160
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "num_classes": (1, NUM_BASE),
            "num_novel": (0, NUM_CLASSES - NUM_BASE),
            "train_images": (1, _MOST_IMAGES),
            "val_images": (1, _MOST_IMAGES),
            "size": (32, 4096),
            "seed": (0, 2**63 - 1),
        }
        check_bounds(self, bounds)

    @property
    def base(self) -> tuple[Thing, ...]:
        return things("base")[: self.num_classes]

    @property
    def novel(self) -> tuple[Thing, ...]:
        return things("novel")[: self.num_novel]

    @property
    def things(self) -> tuple[Thing, ...]:
        """All classes of things by label."""
        return (*self.base, *self.novel)

    def mix(self, split: str) -> ClassMix:
        return class_mix(self.base, self.novel, split)

    def num_images(self, split: str) -> int:
        return self.train_images if split == "train" else self.val_images


@dataclass(frozen=True)
class LabelMaps:
    """One set of label maps.

    Attributes:
        folder: relative to the world; "{split}" stands for the split, "{long}" for ADE20K's name of it.
        thing_ids: value of each label.
        ground_ids: ground and value.
        ignore: value of everything else.
    """

    folder: str
    thing_ids: tuple[int, ...]
    ground_ids: tuple[tuple[str, int], ...]
    ignore: int = 255


@dataclass(frozen=True)
class SceneLayout:
    """Which files scenes become.

    Attributes:
        images: folder of the images, relative to the world; "{split}" and "{long}" as in :class:`LabelMaps`.
        label_maps: sets of label maps, possibly none.
        instances: whether the notes shall tell of each thing.
    """

    images: str
    label_maps: tuple[LabelMaps, ...] = ()
    instances: bool = True


def write_world(
    root: Path,
    kind: str,
    recipe: SceneRecipe,
    layout: SceneLayout,
    write_annotations: Callable[[Path, dict[str, list[Note]]], None],
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Draw all scenes of a recipe, then write annotations, then give the folder its name.

    Until then ``<root>.partial`` holds the blocks that are done, and the same call goes on there. A finished ``root``
    of the same kind and recipe is left as it is.

    Args:
        write_annotations: called with the partial folder and the notes of each split, one per scene::

            {"id": image id, "index": scene, "name": file name, "width": pixels, "height": pixels, "things":
             [{"label", "box": [x, y, width, height], "area", "crowd", "polygons" or, of a crowd, "run_lengths"}]}
        workers: processes that draw; the files do not depend on it.
        progress: called with the images done and the total.
    Raises:
        InputError: ``root`` or its partial folder holds something else.
    """
    world = WorldFolder(root, {"format": FORMAT, "kind": kind} | asdict(recipe))
    total = sum(recipe.num_images(split) for split in SCENE_SPLITS)
    if world.is_finished():
        if progress:
            progress(total, total)
        return
    world.claim()
    notes: dict[str, list[Note]] = {split: [] for split in SCENE_SPLITS}
    draw = functools.partial(_draw_block, root=world.partial, recipe=recipe, layout=layout)
    done = 0
    for split, found in run_jobs(draw, list(_blocks(recipe)), workers):
        notes[split] += found
        done += len(found)
        if progress:
            progress(done, total)
    write_annotations(world.partial, notes)
    world.publish()


def folder_of(root: Path, pattern: str, split: str) -> Path:
    """The folder below ``root`` that a pattern of :class:`SceneLayout` or :class:`LabelMaps` names."""
    return root / pattern.format(split=split, long=_LONG_NAMES[split])


def image_id(split: str, index: int) -> int:
    """Unique over both splits and not dependent on how many images a split has."""
    return 1 + index + SCENE_SPLITS.index(split) * _MOST_IMAGES


def _blocks(recipe: SceneRecipe) -> Iterator[tuple[str, int, int]]:
    for split in SCENE_SPLITS:
        count = recipe.num_images(split)
        for start in range(0, count, _BLOCK):
            yield split, start, min(start + _BLOCK, count)


def _draw_block(
    block: tuple[str, int, int], *, root: Path, recipe: SceneRecipe, layout: SceneLayout
) -> tuple[str, list[Note]]:
    """Write the files of a block and its notes, or read the notes if they are there."""
    split, start, stop = block
    path = root / UNFINISHED / f"{split}_{start:07d}.json"
    if path.is_file():
        return split, json.loads(path.read_text(encoding="utf-8"))
    mix = recipe.mix(split)
    notes = []
    for index in range(start, stop):
        scene = render_scene(plan_scene(index, mix, split=split, seed=recipe.seed), recipe.size)
        number = image_id(split, index)
        stem = f"{number:012d}"
        _write(folder_of(root, layout.images, split) / f"{stem}.jpg", encode_jpeg(scene.pixels))
        for maps in layout.label_maps:
            values = label_map(scene, maps.thing_ids, dict(maps.ground_ids), ignore=maps.ignore)
            _write(folder_of(root, maps.folder, split) / f"{stem}.png", encode_png(values))
        height, width = scene.thing_map.shape
        note: Note = {"id": number, "index": index, "name": f"{stem}.jpg", "width": width, "height": height}
        notes.append(note | {"things": describe_things(scene) if layout.instances else []})
    with atomic_writer(path, "w") as file:
        json.dump(notes, file, separators=(",", ":"))
    return split, notes


def describe_things(scene: Scene) -> list[Note]:
    """Label, box, area and mask of each recognisable thing of a scene; one for all members of a crowd."""
    alone = [position for position, placed in enumerate(scene.plan.things) if not placed.crowd]
    found = [_describe(scene, [position]) for position in alone if is_recognisable(scene, position)]
    members = [position for position, placed in enumerate(scene.plan.things) if placed.crowd]
    if visible_mask(scene, members).any():
        found.append(_describe(scene, members))
    return found


def _describe(scene: Scene, positions: Sequence[int]) -> Note:
    mask = visible_mask(scene, positions)
    placed = scene.plan.things[positions[0]]
    note: Note = {"label": placed.label, "box": tight_box(mask), "area": int(mask.sum()), "crowd": placed.crowd}
    return note | ({"run_lengths": run_lengths(mask)} if placed.crowd else {"polygons": polygons(mask)})


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
