"""Records of images and their label maps, paired by name."""

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from prompt_pretrain.errors import InputError

__all__ = ["LABEL_COUNT_ENDING", "load_binary_mask", "load_sem_seg", "pair_files"]

logger = logging.getLogger(__name__)

LABEL_COUNT_ENDING = "_label_count.json"  # behind the name of a folder of label maps


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[dict[str, str]]:
    """Entries with "file_name" and "sem_seg_file_name", sorted by name.

    As detectron2's function of this name, but files are always paired by name: the real one pairs equal numbers of
    files by their order.

    Raises:
        InputError: see :func:`pair_files`.
    """
    pairs = pair_files(image_root, gt_root, [image_ext], [gt_ext])
    return [{"file_name": image, "sem_seg_file_name": label_map} for image, label_map in pairs]


def load_binary_mask(
    gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg"
) -> list[dict[str, Any]]:
    """Entries as of :func:`load_sem_seg` with "category_id", one for each class in a label map.

    The classes come from ``<gt_root>_label_count.json``, an object with the labels of each label map.

    Raises:
        InputError: see :func:`pair_files`; the counts are missing, not in that format, or know none of the label maps.
    """
    path = os.path.normpath(gt_root) + LABEL_COUNT_ENDING
    counts = _read_counts(path)
    records = []
    missing = 0
    for record in load_sem_seg(gt_root, image_root, gt_ext, image_ext):
        labels = counts.get(os.path.basename(record["sem_seg_file_name"]))
        if labels is None:
            missing += 1
        records += [{**record, "category_id": label} for label in labels or ()]
    if missing:
        logger.warning("%s knows nothing of %d label maps in %s; they are not used", path, missing, gt_root)
    if not records:
        raise InputError(
            f"{path} lists no label of a label map in {gt_root}; count again with datasets/prepare_label_count.py"
        )
    return records


def pair_files(
    image_root: str, label_root: str, image_endings: Sequence[str], label_endings: Sequence[str]
) -> list[tuple[str, str]]:
    """(image, label map) with equal paths below the two folders, endings apart; sorted by that path.

    Files without a partner are left out with a warning.

    Args:
        image_endings, label_endings: such as "jpg"; upper and lower case are the same.
    Raises:
        InputError: a folder is missing or without such files, no two files have one name, or two images (or label
            maps) have the same.
    """
    images = _files_by_name(image_root, image_endings, "image")
    label_maps = _files_by_name(label_root, label_endings, "label map")
    common = sorted(images.keys() & label_maps.keys())
    if not common:
        raise InputError(
            f"no label map in {label_root} has the name of an image in {image_root}, e.g. {min(label_maps)} and "
            f"{min(images)}; give the two folders of one data set"
        )
    if not len(common) == len(images) == len(label_maps):
        logger.warning(
            "%d images in %s and %d label maps in %s: the %d that have both are used",
            *(len(images), image_root, len(label_maps), label_root, len(common)),
        )
    return [(images[name], label_maps[name]) for name in common]


def _files_by_name(folder: str, endings: Sequence[str], what: str) -> dict[str, str]:
    """Path below ``folder`` without its ending -> path; hidden files left out."""
    if not os.path.isdir(folder):
        raise InputError(
            f"folder {folder} does not exist, expected every {what} in it; DETECTRON2_DATASETS names the data root, "
            f"and datasets/prepare_*.py make the folders of label maps"
        )
    allowed = tuple(f".{ending.lower()}" for ending in endings)
    found: dict[str, str] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() not in allowed or name.startswith("."):
                continue
            path = os.path.join(parent, name)
            key = os.path.relpath(os.path.join(parent, stem), folder)
            if key in found:
                raise InputError(f"{found[key]} and {path} have the same name; keep one {what}")
            found[key] = path
    if not found:
        raise InputError(f"folder {folder} holds no {what} *{' or *'.join(allowed)}")
    return found


def _read_counts(path: str) -> dict[str, list[int]]:
    try:
        with open(path, encoding="utf-8") as file:
            counts = json.load(file)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} not found, the labels of each label map; write it with datasets/prepare_label_count.py"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); write it again") from error
    valid = isinstance(counts, dict) and all(
        isinstance(labels, list) and all(type(label) is int and 0 <= label < 1 << 16 for label in labels)
        for labels in counts.values()
    )
    if not valid:
        raise InputError(f"{path} is not an object of lists of labels; write it with datasets/prepare_label_count.py")
    return counts
