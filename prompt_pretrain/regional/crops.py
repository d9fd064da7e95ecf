"""Crops of objects with some of what surrounds them, from an annotation file in LVIS' format.

The published rule keeps every box of at least 20 square pixels and adds one box of context on each side. Of each class
at most a fixed number is drawn, by a seed, before anything is cut: no image is opened for a crop that is not kept.
"""

import hashlib
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.classification.decoding import ImageError, open_image
from prompt_pretrain.classification.randomness import make_generator
from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.classes import RegionalClass, read_descriptions, read_json, regional_classes
from prompt_pretrain.regional.crop_data import BASE_NAMES, NOVEL_NAMES
from prompt_pretrain.regional.image_files import save_jpeg

logger = logging.getLogger(__name__)

__all__ = ["CropCounts", "CropRules", "crop_box", "make_crops"]
SETTINGS = "crops.json"
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class CropRules:
    """Which boxes become crops.

    Attributes:
        padding: context on each side as a share of the box's width and height; 1.0 is published, 0 the tight box.
        min_area: of the box in square pixels (20 is published).
        min_side: of the box in pixels.
        per_class: crops of each class and split; 0 keeps all.
        square: widen the shorter side of the padded box, so that a centre crop does not cut the object.
        seed: of the draw.
    """

    padding: float = 1.0
    min_area: float = 20.0
    min_side: float = 0.0
    per_class: int = 200
    square: bool = False
    seed: int = 3

    def __post_init__(self) -> None:
        for name in ("padding", "min_area", "min_side", "per_class", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name.replace('_', ' ')} of crops is {getattr(self, name)}; expected at least 0")


@dataclass
class CropCounts:
    """What became of the boxes of one split.

    Attributes:
        boxes: annotations there are. kept: crops that exist now. too_small: boxes below the smallest size.
        over_quota: boxes beyond ``per_class``. missing: images not found. damaged: crops that could not be cut.
    """

    boxes: int = 0
    kept: int = 0
    too_small: int = 0
    over_quota: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def crop_box(
    box: Sequence[float], width: int, height: int, padding: float = 1.0, *, square: bool = False
) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) pixels of the crop around ``box`` (x, y, w, h), cut off at the image's border.

    Coordinates are truncated towards zero, as published.
    """
    x, y, w, h = box
    x0, y0, x1, y1 = x - padding * w, y - padding * h, x + (1 + padding) * w, y + (1 + padding) * h
    if square:
        extra = (x1 - x0) - (y1 - y0)
        x0, x1 = x0 - max(-extra, 0) / 2, x1 + max(-extra, 0) / 2
        y0, y1 = y0 - max(extra, 0) / 2, y1 + max(extra, 0) / 2
    return max(0, int(x0)), max(0, int(y0)), min(width, int(x1)), min(height, int(y1))


def make_crops(
    train_json: str | os.PathLike,
    val_json: str | os.PathLike,
    image_root: str | os.PathLike,
    output: str | os.PathLike,
    *,
    rules: CropRules | None = None,
    descriptions: str | os.PathLike | None = None,
    workers: int = 10,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, CropCounts]:
    """Write the crops of base classes of both splits, and those of novel classes of the validation images.

    The layout is that of :mod:`~prompt_pretrain.regional.crop_data`, with ``manifest.jsonl`` beside it. A base class
    without a training crop is left out of the class list, and so are its validation crops. An interrupted call is taken
    up; crops that are there are not cut again.

    Args:
        image_root: folder of ``train2017`` and ``val2017``; images are the last two parts of ``coco_url``.
        descriptions: see :func:`~prompt_pretrain.regional.classes.read_descriptions`; None takes the json's ``def``.
        progress: called with the split, the crops done and their number.
    Returns:
        "train", "val" and "novel" -> counts.
    Raises:
        InputError: files of another form or with other classes, no image at all, or crops of other settings in
            ``output``.
    """
    rules = rules or CropRules()
    contents = {
        split: read_json(path, ("images", "annotations", "categories"))
        for split, path in (("train", train_json), ("val", val_json))
    }
    texts = None if descriptions is None else read_descriptions(descriptions)
    classes = regional_classes(contents["train"]["categories"], str(train_json), texts)
    check_same_classes(classes, contents["val"]["categories"], str(train_json), str(val_json))
    output = Path(output)
    _claim(output, rules, classes, (train_json, val_json))
    found: dict[str, CropCounts] = {}
    rows: list[dict[str, Any]] = []
    base = {item.id: item for item in classes if item.base}
    for split in ("train", "val", "novel"):
        wanted = {item.id: item for item in classes if not item.base} if split == "novel" else base
        content = contents["train" if split == "train" else "val"]
        jobs, counts = _choose(content, wanted, split, rules)
        report = (lambda done, total, split=split: progress(split, done, total)) if progress else None
        _cut(jobs, Path(image_root), output / "images" / split, counts, rules, workers, report)
        if jobs and not counts.kept:
            raise InputError(
                f"none of the {len(jobs)} {split} crops could be cut, first {(counts.missing + counts.damaged)[0]}; "
                "give the folder that holds train2017 and val2017"
            )
        kept = [job for job in jobs if (output / "images" / split / job["file"]).is_file()]
        if split == "train":
            present = {job["category_id"] for job in kept}
            _report_empty([item for item in base.values() if item.id not in present])
            base = {key: item for key, item in base.items() if key in present}
        (output / "images" / split).mkdir(parents=True, exist_ok=True)
        rows += [{"split": split, **job} for job in kept]
        found[split] = counts
    _write_lines(output / "manifest.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))
    _write_lines(output / BASE_NAMES, (item.line for item in base.values()))
    novel = [item for item in classes if not item.base]
    if novel:
        _write_lines(output / NOVEL_NAMES, (item.line for item in novel))
    return found


def check_same_classes(
    classes: Sequence[RegionalClass], categories: Sequence[Mapping[str, Any]], one: str, other: str
) -> None:
    """Raise unless ``categories`` have the ids and names of ``classes``."""
    names = {item.id: item.name for item in classes}
    others = {row["id"]: row.get("name") for row in categories}
    if names != others:
        differs = sorted(set(names.items()) ^ set(others.items()), key=str)[0]
        raise InputError(
            f"{one} and {other} differ in their classes, e.g. category {differs[0]} {differs[1]!r}; give annotations "
            "of one label set"
        )


def _choose(
    content: Mapping[str, Any], classes: Mapping[int, RegionalClass], split: str, rules: CropRules
) -> tuple[list[dict[str, Any]], CropCounts]:
    """Crops to make, in the order of the annotation ids, and what was left out."""
    counts = CropCounts()
    images = {image["id"]: image for image in content["images"]}
    of_class: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(content["annotations"], key=lambda row: row["id"]):
        if row.get("category_id") not in classes or row.get("iscrowd"):
            continue
        counts.boxes += 1
        width, height = row["bbox"][2:]
        if width * height < rules.min_area or min(width, height) < rules.min_side:
            counts.too_small += 1
            continue
        if row["image_id"] not in images:
            raise InputError(f"annotation {row['id']} is of image {row['image_id']}, which the file does not list")
        of_class[row["category_id"]].append(row)
    chosen = []
    for category, rows in of_class.items():
        if rules.per_class and len(rows) > rules.per_class:
            counts.over_quota += len(rows) - rules.per_class
            generator = make_generator(f"crops {split}", rules.seed, category)
            order = torch.randperm(len(rows), generator=generator)[: rules.per_class]
            rows = [rows[i] for i in sorted(order.tolist())]
        chosen += rows
    jobs = []
    for row in sorted(chosen, key=lambda row: row["id"]):
        image = _image_path(images[row["image_id"]])
        folder = classes[row["category_id"]].folder
        jobs.append(
            {
                "annotation_id": row["id"],
                "category_id": row["category_id"],
                "image": image,
                "bbox": list(row["bbox"]),
                "file": f"{folder}/{row['id']}_{Path(image).stem}.jpg",
            }
        )
    return jobs, counts


def _image_path(image: Mapping[str, Any]) -> str:
    """``train2017/000000000001.jpg``: LVIS' validation images lie in both of COCO's folders."""
    url = image.get("coco_url")
    name = "/".join(str(url).split("/")[-2:]) if url else image.get("file_name")
    if not name:
        raise InputError(f"image {image['id']} has neither 'coco_url' nor 'file_name'")
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise InputError(f"image {image['id']} is {name!r}, outside the folder of images")
    return name


def _cut(
    jobs: Sequence[dict[str, Any]],
    image_root: Path,
    target: Path,
    counts: CropCounts,
    rules: CropRules,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Cut what is not there yet, image by image."""
    by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        by_image[job["image"]].append(job)
    for folder in {Path(job["file"]).parent for job in jobs}:
        (target / folder).mkdir(parents=True, exist_ok=True)
    done = 0
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        tasks = ((image_root / image, target, of_image, rules) for image, of_image in by_image.items())
        for of_image, outcome in zip(by_image.values(), pool.map(_cut_image, tasks), strict=True):
            counts.kept += outcome.kept
            counts.missing += outcome.missing
            counts.damaged += outcome.damaged
            done += len(of_image)
            if progress is not None:
                progress(done, len(jobs))
    for what, names in (("not found", counts.missing), ("not usable", counts.damaged)):
        if names:
            logger.warning("%s: %d, first %s; the crops are left out", what, len(names), names[0])


def _cut_image(task: tuple[Path, Path, Sequence[dict[str, Any]], CropRules]) -> CropCounts:
    path, target, jobs, rules = task
    counts = CropCounts()
    missing = [job for job in jobs if not (target / job["file"]).is_file()]
    counts.kept = len(jobs) - len(missing)
    if not missing:
        return counts
    if not path.is_file():
        counts.missing.append(str(path))
        return counts
    try:
        image = open_image(str(path))
    except ImageError as error:
        counts.damaged.append(str(error))
        return counts
    for job in missing:
        box = crop_box(job["bbox"], image.width, image.height, rules.padding, square=rules.square)
        if box[2] <= box[0] or box[3] <= box[1]:
            counts.damaged.append(f"annotation {job['annotation_id']}: its box lies outside {path}")
            continue
        save_jpeg(image.crop(box), target / job["file"])
        counts.kept += 1
    return counts


def _claim(
    output: Path, rules: CropRules, classes: Sequence[RegionalClass], files: Sequence[str | os.PathLike]
) -> None:
    """Make ``output``, or check that it holds crops of the same settings."""
    described = {
        "rules": asdict(rules),
        "annotations": [hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files],
        "classes": hashlib.sha256("\n".join(item.line for item in classes).encode()).hexdigest()[:16],
    }
    path = output / SETTINGS
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); delete {output} and make the crops again") from error
        if found != described:
            different = [key for key in described if not isinstance(found, dict) or found.get(key) != described[key]]
            raise InputError(
                f"{output} holds crops of other settings ({', '.join(different)}); choose another --output or delete it"
            )
        return
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds something else than crops; choose a new folder for --output")
    write_json(path, described)


def _report_empty(classes: Sequence[RegionalClass]) -> None:
    if classes:
        logger.warning(
            "%d base classes have no training crop and are left out, first %r", len(classes), classes[0].name
        )


def _write_lines(path: Path, lines: Any) -> None:
    with atomic_writer(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)


def count_per_class(manifest: str | os.PathLike, split: str) -> np.ndarray:
    """Numbers of crops of the classes of a split that have any, largest first."""
    with open(manifest, encoding="utf-8") as file:
        rows = map(json.loads, file)
        counts = Counter(row["category_id"] for row in rows if row["split"] == split)
    return np.array(sorted(counts.values(), reverse=True), dtype=np.int64)
