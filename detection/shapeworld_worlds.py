"""Draws the data of the ShapeWorld detection study: scenes with boxes, pictures with labels, two foreign data sets."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.shapeworld.annotation_writers import write_coco, write_lvis
from prompt_pretrain.shapeworld.classes import Thing
from prompt_pretrain.shapeworld.images import render_image
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from prompt_pretrain.shapeworld.world_folder import WorldFolder, encode_jpeg, run_jobs

__all__ = ["CAT_INFO", "DetectionWorlds", "classes_by_split", "draw_worlds"]
CAT_INFO = "lvis_train_norare_cat_info.json"
_FORMAT = 1  # raised when the same settings start to give other image-labelled pictures
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DetectionWorlds:
    """What is drawn.

    Attributes:
        lvis: the scenes to train on and to evaluate on.
        coco, objects365: scenes of the foreign data sets; only their validation images are used.
        pictures_per_class: image-labelled pictures of each class of ``lvis``, base and novel.
        picture_size: their side in pixels.
    """

    lvis: SceneRecipe = field(
        default_factory=lambda: SceneRecipe(num_classes=200, num_novel=160, train_images=500, val_images=300)
    )
    coco: SceneRecipe = field(
        default_factory=lambda: SceneRecipe(num_classes=60, num_novel=60, train_images=1, val_images=250, seed=1)
    )
    objects365: SceneRecipe = field(
        default_factory=lambda: SceneRecipe(num_classes=240, num_novel=125, train_images=1, val_images=250, seed=2)
    )
    pictures_per_class: int = 12
    picture_size: int = 96


def draw_worlds(
    root: str | os.PathLike, worlds: DetectionWorlds, *, workers: int = 1, progress: Progress | None = None
) -> None:
    """Write everything below ``root``; what is there is left as it is, and an interrupted call is taken up.

    Args:
        progress: called with what is drawn, the images done and their total.
    Raises:
        InputError: a folder holds something else, or a world of other settings.
    """
    root = Path(root)

    def reporter(name: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(name, done, total) if progress else None

    write_lvis(root / "lvis", worlds.lvis, workers=workers, progress=reporter("scenes"))
    _write_category_counts(root)
    _write_pictures(root / "image_labels", worlds, workers, reporter("pictures"))
    write_coco(root / "coco", worlds.coco, workers=workers, progress=reporter("COCO scenes"))
    _write_objects365(root, worlds.objects365, workers, reporter("Objects365 scenes"))


def _write_category_counts(root: Path) -> None:
    """Image counts of the classes as they are annotated for training: novel classes have none."""
    content = json.loads((root / "lvis" / "lvis" / "lvis_v1_train_norare.json").read_text(encoding="utf-8"))
    images: dict[int, set[int]] = {category["id"]: set() for category in content["categories"]}
    for annotation in content["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    rows = [
        {"id": category["id"], "name": category["name"], "image_count": len(images[category["id"]])}
        for category in content["categories"]
    ]
    write_json(root / CAT_INFO, rows)


def _write_pictures(root: Path, worlds: DetectionWorlds, workers: int, progress: Callable[[int, int], None]) -> None:
    """Pictures of one thing each in the layout of ImageNet-LVIS: labels of images, no boxes."""
    described = {
        "format": _FORMAT,
        "kind": "image_labels",
        "num_classes": worlds.lvis.num_classes,
        "num_novel": worlds.lvis.num_novel,
        "pictures_per_class": worlds.pictures_per_class,
        "picture_size": worlds.picture_size,
    }
    folder = WorldFolder(root, described)
    if folder.is_finished():
        return
    folder.claim()
    jobs = [
        (folder.partial / "images" / _file_name(label, number), thing, number, worlds.picture_size)
        for label, thing in enumerate(worlds.lvis.things)
        for number in range(worlds.pictures_per_class)
    ]
    for path, *_ in jobs:
        path.parent.mkdir(parents=True, exist_ok=True)
    for done, _ in enumerate(run_jobs(_draw_picture, jobs, workers, chunk_size=64), start=1):
        progress(done, len(jobs))
    write_json(folder.partial / "image_info.json", _image_info(worlds))
    folder.publish()


def _image_info(worlds: DetectionWorlds) -> dict[str, Any]:
    side = worlds.picture_size
    images = [
        {
            "id": label * worlds.pictures_per_class + number + 1,
            "file_name": _file_name(label, number),
            "pos_category_ids": [label + 1],
            "width": side,
            "height": side,
        }
        for label in range(len(worlds.lvis.things))
        for number in range(worlds.pictures_per_class)
    ]
    categories = [
        {"id": label, "name": thing.name.replace(" ", "_")} for label, thing in enumerate(worlds.lvis.things, start=1)
    ]
    return {"images": images, "annotations": [], "categories": categories}


def _file_name(label: int, number: int) -> str:
    return f"{label + 1:04d}/{label + 1:04d}_{number:04d}.jpg"


def _draw_picture(job: tuple[Path, Thing, int, int]) -> None:
    path, thing, number, size = job
    path.write_bytes(encode_jpeg(render_image(thing, number, size=size)))


def _write_objects365(root: Path, recipe: SceneRecipe, workers: int, progress: Callable[[int, int], None]) -> None:
    """Scenes in the layout of Objects365 v2: images in patches, ids without gaps, boxes without masks."""
    target = root / "objects365"
    annotations = target / "annotations" / "zhiyuan_objv2_val_fixname.json"
    write_coco(root / "objects365_scenes", recipe, workers=workers, progress=progress)
    source = root / "objects365_scenes" / "coco"
    content = json.loads((source / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))
    ranks = {category["id"]: rank for rank, category in enumerate(content["categories"], start=1)}
    patch = "images/v2/patch16"
    (target / "val" / patch).mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        link = target / "val" / patch / f"objects365_v2_{image['id']:08d}.jpg"
        if not link.exists():
            os.link(source / "val2017" / image["file_name"], link)
        image["file_name"] = f"{patch}/{link.name}"
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        annotation |= {"category_id": ranks[annotation["category_id"]], "isfake": 0, "isreflected": 0}
    for category in content["categories"]:
        category["id"] = ranks[category["id"]]
    write_json(annotations, content)


def classes_by_split(categories: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Names of the base and of the novel classes of a ShapeWorld json."""
    found: dict[str, list[str]] = {"base": [], "novel": []}
    for category in categories:
        found["novel" if _is_novel(category) else "base"].append(category["name"])
    return found


def _is_novel(category: dict[str, Any]) -> bool:
    return category.get("split") == "novel" or category.get("frequency") == "r"
