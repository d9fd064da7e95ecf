"""From the predictions file of the pseudo-label evaluator to label maps to train on."""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from prompt_pretrain.annotation_fields import rle_problem
from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.classification.decoding import MAX_PIXELS
from prompt_pretrain.errors import InputError

__all__ = ["write_pseudo_label_maps"]

_IGNORED = 255
_MAX_STEM = 200  # bytes; file systems allow 255, and a temporary name is longer


def write_pseudo_label_maps(
    predictions: str | Path, folder: str | Path, category_to_label: Mapping[int, int] | None = None
) -> int:
    """Write ``<image stem>.png`` for every image in the file; 255 where nothing was predicted. Returns their number.

    Args:
        predictions: ``sem_seg_predictions.json`` of an evaluation.
        folder: gets the maps; ``coco_2017_train_stuff_sem_seg_pseudo`` and ``voc_sem_seg_train_pseudo`` read the folder
            named by DETECTRON2_SEM_PSEUDO.
        category_to_label: the metadata's stuff_dataset_id_to_contiguous_id, None where categories are labels.
    Raises:
        InputError: the file is missing, no JSON list, has an unknown category, masks of different sizes for one image,
            two images of one stem, or an image whose maps are not next to each other.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    for image, items in groupby(_items(Path(predictions)), key=lambda item: item["file_name"]):
        stem = Path(image).stem
        if stem in written:
            raise InputError(f"{predictions}: {image} and {written[stem]} would both become {stem}.png")
        written[stem] = image
        labels = _paint(list(items), category_to_label, f"{predictions}: {image}")
        with atomic_writer(folder / f"{stem}.png") as file:
            Image.fromarray(labels).save(file, format="PNG")
    return len(written)


def _items(path: Path) -> Iterator[dict[str, Any]]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; evaluate with PSEUDO True first") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(items, list) or not all(map(_is_prediction, items)):
        keys = ("category_id", "file_name", "segmentation")
        raise InputError(f"{path} is not a list of {', '.join(keys)}; give an evaluator's sem_seg_predictions.json")
    yield from items


def _is_file_name(stem: str) -> bool:
    """Whether a file can be called so on every system."""
    return 0 < len(stem.encode("utf-8", "replace")) <= _MAX_STEM and stem.isprintable() and "\\" not in stem


def _is_prediction(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("segmentation"), dict):
        return False
    size = item["segmentation"].get("size")
    return (
        isinstance(item.get("file_name"), str)
        and _is_file_name(Path(item["file_name"]).stem)
        and type(item.get("category_id")) is int
        and isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
    )


def _paint(items: list[dict[str, Any]], category_to_label: Mapping[int, int] | None, where: str) -> np.ndarray:
    height, width = items[0]["segmentation"]["size"]
    if not height * width <= MAX_PIXELS:
        raise InputError(f"{where} has masks of {height} x {width} pixels, at most {MAX_PIXELS:,} are possible")
    labels = np.full((height, width), _IGNORED, dtype=np.uint8)
    for item in items:
        rle, category = item["segmentation"], item["category_id"]
        if rle["size"] != [height, width]:
            raise InputError(f"{where} has masks of sizes {[height, width]} and {rle['size']}")
        problem = rle_problem(rle, height, width)
        if problem or isinstance(rle["counts"], list):
            raise InputError(f"{where}: {problem or 'a mask is not in the compressed form that evaluators write'}")
        if category == _IGNORED:
            continue
        label = category if category_to_label is None else category_to_label.get(category)
        if label is None or not 0 <= label < _IGNORED:
            raise InputError(f"{where} has category {category}, which is none of the data set's classes")
        labels[mask_util.decode(rle) > 0] = label
    return labels
