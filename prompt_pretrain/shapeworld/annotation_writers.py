"""Worlds of scenes in the layouts of COCO, LVIS and plain semantic segmentation."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.grounds import GROUNDS
from prompt_pretrain.shapeworld.images import generator
from prompt_pretrain.shapeworld.scene_files import (
    LabelMaps,
    Note,
    Progress,
    SceneLayout,
    SceneRecipe,
    write_world,
)
from prompt_pretrain.shapeworld.scenes import SCENE_SPLITS

COCO_URL = "http://images.cocodataset.org/"  # readers of LVIS cut exactly this off
_COCO_IMAGES = "coco/{split}2017"
_DATE = "2017-01-01 00:00:00"  # the same for every picture: files must not depend on the day
_UNCHECKED_SHARE = 0.1  # of the classes in a picture that LVIS annotators did not look for
_NEGATIVE_SHARE = 0.1  # of all classes that they found absent
_STREAM = 200  # keeps these random numbers apart from those of pictures and scenes


def write_coco(
    root: str | os.PathLike,
    recipe: SceneRecipe | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write scenes in the layout of COCO 2017.

    ::

        root/coco/{train,val}2017/*.jpg
        root/coco/annotations/instances_{train,val}2017.json
        root/shapeworld.json                                    the recipe

    Category ids have gaps, as in COCO. "supercategory" is the shape; the key "split", which COCO does not have, is
    "base" or "novel". Crowds of small things have ``iscrowd`` 1 and a run-length mask. See :func:`write_world` for
    arguments, interruptions and errors.
    """
    recipe = recipe or SceneRecipe()

    def write_annotations(folder: Path, notes: dict[str, list[Note]]) -> None:
        for split in SCENE_SPLITS:
            content = _coco_content(recipe, split, notes[split])
            _write_compact(folder / f"coco/annotations/instances_{split}2017.json", content)

    layout = SceneLayout(_COCO_IMAGES)
    write_world(Path(root), "coco", recipe, layout, write_annotations, workers=workers, progress=progress)


def write_lvis(
    root: str | os.PathLike,
    recipe: SceneRecipe | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write scenes in the layout of LVIS v1.

    ::

        root/coco/{train,val}2017/*.jpg
        root/lvis/lvis_v1_{train,val}.json
        root/lvis/lvis_v1_train_norare.json                     without annotations of rare classes
        root/shapeworld.json                                    the recipe

    Novel classes are the rare ones ("r"); the more frequent half of the base classes is "f", the rest "c". As in LVIS,
    only some classes are checked in each picture: of those it shows, a few are neither annotated nor listed; of those
    it does not show, some are listed in "neg_category_ids". A class of which there is a crowd is listed in
    "not_exhaustive_category_ids" instead of annotated. See :func:`write_world` for arguments, interruptions and errors.
    """
    recipe = recipe or SceneRecipe()

    def write_annotations(folder: Path, notes: dict[str, list[Note]]) -> None:
        contents = {split: _lvis_content(recipe, split, notes[split]) for split in SCENE_SPLITS}
        categories = _lvis_categories(recipe, contents["train"]["annotations"])
        for split, content in contents.items():
            _write_compact(folder / f"lvis/lvis_v1_{split}.json", content | {"categories": categories})
        rare = {category["id"] for category in categories if category["frequency"] == "r"}
        kept = [entry for entry in contents["train"]["annotations"] if entry["category_id"] not in rare]
        norare = contents["train"] | {"annotations": kept, "categories": categories}
        _write_compact(folder / "lvis/lvis_v1_train_norare.json", norare)

    layout = SceneLayout(_COCO_IMAGES)
    write_world(Path(root), "lvis", recipe, layout, write_annotations, workers=workers, progress=progress)


def write_sem_seg(
    root: str | os.PathLike,
    recipe: SceneRecipe | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write scenes as images and label maps of things and grounds.

    ::

        root/images/{train,val}/*.jpg
        root/labels/{train,val}/*.png       8 bits, ids of classes.json, 255 where things are too hidden to tell
        root/classes.json                   id, name, kind ("thing" or "ground") and split ("base" or "novel")
        root/classes.txt                    the names in the order of the ids
        root/shapeworld.json                the recipe

    Ids count base things first, then grounds, then novel things: whoever trains without novel classes ignores the ids
    from the first novel one on. See :func:`write_world` for arguments, interruptions and errors.

    Raises:
        InputError: also if there are more than 255 classes.
    """
    recipe = recipe or SceneRecipe()
    classes = sem_seg_classes(recipe)
    if len(classes) > 255:
        raise InputError(
            f"ShapeWorld: label maps have room for {255 - len(GROUNDS)} classes of things, found "
            f"{len(recipe.things)}; lower num_classes or num_novel"
        )

    def write_annotations(folder: Path, notes: dict[str, list[Note]]) -> None:
        write_class_list(folder, classes)

    ids = {entry["name"]: entry["id"] for entry in classes}
    maps = LabelMaps(
        "labels/{split}",
        tuple(ids[thing.name] for thing in recipe.things),
        tuple((ground, ids[ground]) for ground in GROUNDS),
    )
    layout = SceneLayout("images/{split}", (maps,), instances=False)
    write_world(Path(root), "sem_seg", recipe, layout, write_annotations, workers=workers, progress=progress)


def sem_seg_classes(recipe: SceneRecipe) -> list[dict[str, Any]]:
    """Id, name, kind and split of every class in label maps."""
    rows = [(thing.name, "thing", "base") for thing in recipe.base]
    rows += [(ground, "ground", "base") for ground in GROUNDS]
    rows += [(thing.name, "thing", "novel") for thing in recipe.novel]
    return [{"id": i, "name": name, "kind": kind, "split": split} for i, (name, kind, split) in enumerate(rows)]


def write_class_list(folder: Path, classes: Sequence[dict[str, Any]]) -> None:
    """Write ``classes.json`` with all facts and ``classes.txt`` with the names alone."""
    write_json(folder / "classes.json", classes)
    with atomic_writer(folder / "classes.txt", "w") as file:
        file.writelines(f"{entry['name']}\n" for entry in classes)


def coco_category_id(label: int) -> int:
    """COCO's ids start at 1 and have gaps: every tenth is missing here."""
    return 1 + label + label // 9


def _coco_content(recipe: SceneRecipe, split: str, notes: Sequence[Note]) -> dict[str, Any]:
    images = [{"file_name": note["name"]} | _image_fields(note, split) for note in notes]
    annotations = [
        {
            "id": number,
            "image_id": note["id"],
            "category_id": coco_category_id(thing["label"]),
            "bbox": thing["box"],
            "area": thing["area"],
            "iscrowd": int(thing["crowd"]),
            "segmentation": thing["run_lengths"] if thing["crowd"] else thing["polygons"],
        }
        for number, (note, thing) in enumerate(((note, thing) for note in notes for thing in note["things"]), start=1)
    ]
    categories = [
        {
            "id": coco_category_id(label),
            "name": thing.name,
            "supercategory": thing.shape,
            "split": "base" if label < recipe.num_classes else "novel",
        }
        for label, thing in enumerate(recipe.things)
    ]
    return _header() | {"images": images, "annotations": annotations, "categories": categories}


def _lvis_content(recipe: SceneRecipe, split: str, notes: Sequence[Note]) -> dict[str, Any]:
    images, annotations = [], []
    for note in notes:
        present = sorted({thing["label"] for thing in note["things"]})
        crowded = {thing["label"] for thing in note["things"] if thing["crowd"]}
        unchecked, negative = _federation(recipe, split, note["index"], present)
        checked = set(present) - unchecked
        lists = {
            "neg_category_ids": _lvis_ids(negative),
            "not_exhaustive_category_ids": _lvis_ids(crowded & checked),
        }
        images.append(_image_fields(note, split) | lists)
        annotations += [
            {
                "id": 0,
                "image_id": note["id"],
                "category_id": thing["label"] + 1,
                "bbox": thing["box"],
                "area": thing["area"],
                "segmentation": thing["polygons"],
            }
            for thing in note["things"]
            if thing["label"] in checked and not thing["crowd"]
        ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return _header() | {"images": images, "annotations": annotations}


def _federation(recipe: SceneRecipe, split: str, index: int, present: Sequence[int]) -> tuple[set[int], set[int]]:
    """Labels in a picture that nobody looked for, and labels found to be absent from it."""
    rng = generator(recipe.seed, _STREAM + SCENE_SPLITS.index(split), index)
    # One class of each picture at least is looked for.
    unchecked = {label for label in present[1:] if rng.random() < _UNCHECKED_SHARE}
    absent = [label for label in range(len(recipe.things)) if label not in present]
    count = min(len(absent), max(4, round(_NEGATIVE_SHARE * len(recipe.things))))
    return unchecked, {absent[number] for number in rng.permutation(len(absent))[:count]}


def _lvis_categories(recipe: SceneRecipe, annotations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    instances: Counter[int] = Counter()
    pictures: dict[int, set[int]] = {label: set() for label in range(len(recipe.things))}
    for annotation in annotations:
        label = annotation["category_id"] - 1
        instances[label] += 1
        pictures[label].add(annotation["image_id"])
    by_count = sorted(range(recipe.num_classes), key=lambda label: (-len(pictures[label]), label))
    frequent = set(by_count[: (recipe.num_classes + 1) // 2])
    categories = []
    for label, thing in enumerate(recipe.things):
        name = thing.name.replace(" ", "_")
        frequency = "r" if label >= recipe.num_classes else "f" if label in frequent else "c"
        categories.append(
            {
                "id": label + 1,
                "name": name,
                "synset": f"{name}.n.01",
                "synonyms": [name],
                "def": f"a {thing.shape} that is {thing.colour} and {thing.pattern}",
                "frequency": frequency,
                "image_count": len(pictures[label]),
                "instance_count": instances[label],
            }
        )
    return categories


def _image_fields(note: Note, split: str) -> dict[str, Any]:
    return {
        "id": note["id"],
        "width": note["width"],
        "height": note["height"],
        "license": 1,
        "coco_url": f"{COCO_URL}{split}2017/{note['name']}",
        "flickr_url": "",
        "date_captured": _DATE,
    }


def _header() -> dict[str, Any]:
    info = {"description": "ShapeWorld, a synthetic world", "version": "1", "year": 2017, "date_created": _DATE}
    return {"info": info, "licenses": [{"id": 1, "name": "Apache License 2.0", "url": ""}]}


def _lvis_ids(labels: Collection[int]) -> list[int]:
    return [label + 1 for label in sorted(labels)]


def _write_compact(path: Path, content: dict[str, Any]) -> None:
    with atomic_writer(path, "w") as file:
        json.dump(content, file, separators=(",", ":"))
