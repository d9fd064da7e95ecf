"""Worlds of scenes as label maps in the layouts of COCO-Stuff, VOC 2012, ADE20K and PASCAL-Context.

As the preparation tools leave these data sets: values count from 0, 255 is ignored. Each world lies in a folder of its
own with ``classes.json`` (id, name, kind, split), ``classes.txt`` and the recipe in ``shapeworld.json``.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.annotation_writers import sem_seg_classes, write_class_list
from prompt_pretrain.shapeworld.grounds import GROUNDS
from prompt_pretrain.shapeworld.scene_files import (
    LabelMaps,
    Note,
    Progress,
    SceneLayout,
    SceneRecipe,
    folder_of,
    write_world,
)
from prompt_pretrain.shapeworld.scenes import SCENE_SPLITS

__all__ = ["FORMATS", "LabelMapFormat", "write_label_maps"]
IGNORE = 255
BASE = "_base"  # behind the name of a folder of label maps without novel classes
COUNTS = "_label_count.json"  # behind the name of a folder of label maps: the classes in each


@dataclass(frozen=True)
class LabelMapFormat:
    """How one data set lies on disk and what it names.

    Attributes:
        images, labels: folders as patterns, see :class:`LabelMaps`.
        grounds: those among the classes; the others are ignored.
        with_base: also write label maps without novel classes, and counts of the labels in every map.
    """

    images: str
    labels: str
    grounds: tuple[str, ...] = GROUNDS
    with_base: bool = False


FORMATS = {
    "coco_stuff": LabelMapFormat(
        "coco/{split}2017", "coco/stuffthingmaps_detectron2/{split}2017", GROUNDS[:6], with_base=True
    ),
    "voc": LabelMapFormat("VOC2012/JPEGImages", "VOC2012/annotations_detectron2/{split}", ()),
    "ade20k": LabelMapFormat(
        "ADEChallengeData2016/images/{long}", "ADEChallengeData2016/annotations_detectron2/{long}"
    ),
    "pascal_context": LabelMapFormat("pcontext/{split}/image", "pcontext/{split}/label", GROUNDS[3:9]),
}


def write_label_maps(
    root: str | os.PathLike,
    kind: str,
    recipe: SceneRecipe | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write scenes in a format of :data:`FORMATS`. See ``write_world`` for arguments, interruptions and errors.

    ::

        root/coco/{train,val}2017/*.jpg                                  coco_stuff, half of the grounds
        root/coco/stuffthingmaps_detectron2/{train,val}2017[_base]/*.png
        root/coco/stuffthingmaps_detectron2/{train,val}2017[_base]_label_count.json
        root/VOC2012/JPEGImages/*.jpg                                    voc, things only
        root/VOC2012/annotations_detectron2/{train,val}/*.png
        root/ADEChallengeData2016/{images,annotations_detectron2}/{training,validation}   ade20k
        root/pcontext/{train,val}/{image,label}                                     pascal_context, another half

    Ids count base things first, then grounds, then novel things. ``_base`` maps ignore novel things.

    Raises:
        InputError: also for more than 255 classes or another kind.
    """
    if kind not in FORMATS:
        raise InputError(f"unknown format of label maps {kind!r}; choose one of {', '.join(FORMATS)}")
    recipe, layout = recipe or SceneRecipe(), FORMATS[kind]
    classes = classes_of(kind, recipe)
    if len(classes) > IGNORE:
        raise InputError(f"ShapeWorld: label maps of 8 bits have room for {IGNORE} classes, found {len(classes)}")
    ids = {entry["name"]: entry["id"] for entry in classes}
    things = tuple(ids[thing.name] for thing in recipe.things)
    seen = (*things[: recipe.num_classes], *[IGNORE] * recipe.num_novel)
    grounds = tuple((ground, ids[ground]) for ground in GROUNDS if ground in ids)
    maps = [LabelMaps(layout.labels, things, grounds)]
    if layout.with_base:
        maps.append(LabelMaps(layout.labels + BASE, seen, grounds))

    def write_annotations(folder: Path, notes: dict[str, list[Note]]) -> None:
        write_class_list(folder, classes)
        if layout.with_base:
            _write_counts(folder, maps)

    write_world(
        Path(root), kind, recipe, SceneLayout(layout.images, tuple(maps), instances=False), write_annotations,
        workers=workers, progress=progress,
    )  # fmt: skip


def classes_of(kind: str, recipe: SceneRecipe) -> list[dict[str, Any]]:
    """Id, name, kind and split of every class in the label maps of a format."""
    kept = FORMATS[kind].grounds
    rows = [entry for entry in sem_seg_classes(recipe) if entry["kind"] == "thing" or entry["name"] in kept]
    return [entry | {"id": number} for number, entry in enumerate(rows)]


def _write_counts(root: Path, maps: Sequence[LabelMaps]) -> None:
    for each in maps:
        for split in SCENE_SPLITS:
            folder = folder_of(root, each.folder, split)
            counts = {
                path.name: [value for value in np.unique(cv2.imread(str(path), -1)).tolist() if value != IGNORE]
                for path in sorted(folder.glob("*.png"))
            }
            write_json(folder.with_name(folder.name + COUNTS), counts)
