"""The segmentation sets by their published names and paths; ADE20K-150 and Cityscapes are detectron2's own."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.lazy_metadata import dataset_root, register_lazy_metadata
from segmentation.data.datasets.classes import (
    Facts,
    ade20k_full_facts,
    coco_stuff_facts,
    pascal_context_facts,
    voc_facts,
)
from segmentation.data.datasets.pairs import load_binary_mask, load_sem_seg

__all__ = ["dataset_root", "pseudo_label_root", "register_segmentation_datasets"]

_LAZY = ("stuff_", "trainable_flag", "evaluation_set")  # facts about classes
_PARTS = {"all": "", "base": "_base", "novel": "_novel"}


class _Entry(NamedTuple):
    name: str
    images: str  # folders
    label_maps: str
    classes: Callable[[], Facts]
    ignore_label: int = 255
    label_ending: str = "png"


def pseudo_label_root() -> str:
    """Folder of the label maps that a model predicted: ``DETECTRON2_SEM_PSEUDO``, by default ``output/inference``."""
    return os.path.expanduser(os.getenv("DETECTRON2_SEM_PSEUDO", os.path.join("output", "inference")))


def register_segmentation_datasets(root: str, pseudo_labels: str) -> None:
    """Register them all.

    Args:
        root: the data root.
        pseudo_labels: folder of the label maps of the sets for self-training.
    """
    entries = [*_coco_stuff(root), *_voc(root), *_cross_dataset(root)]
    for entry in entries:
        _register(entry, entry.name, load_sem_seg, "sem_seg")
        if _has_classification(entry.name):
            _register(entry, f"{entry.name}_classification", load_binary_mask, "classification")
    full = {entry.name: entry for entry in entries}
    for name in ("coco_2017_train_stuff_sem_seg", "voc_sem_seg_train"):
        _register(full[name]._replace(label_maps=pseudo_labels), f"{name}_pseudo", load_sem_seg, "sem_seg")


def _coco_stuff(root: str) -> Iterator[_Entry]:
    folder = os.path.join(root, "coco")
    for split, images in (("train", "train2017"), ("test", "val2017")):
        for part, ending in _PARTS.items():
            yield _Entry(
                f"coco_2017_{split}_stuff{ending}_sem_seg",
                os.path.join(folder, images),
                os.path.join(folder, "stuffthingmaps_detectron2", images + ending),
                coco_stuff_facts(part),
            )
        yield _Entry(
            f"coco_2017_{split}_stuff_10k_sem_seg",
            os.path.join(folder, "coco_stuff_10k", "images_detectron2", split),
            os.path.join(folder, "coco_stuff_10k", "annotations_detectron2", split),
            coco_stuff_facts(),
        )


def _voc(root: str) -> Iterator[_Entry]:
    folder = os.path.join(root, "VOC2012")
    for split, labels in (("train", "train"), ("test", "val")):
        for part, ending in _PARTS.items():
            yield _Entry(
                f"voc{ending}_sem_seg_{split}",
                os.path.join(folder, "JPEGImages"),
                os.path.join(folder, "annotations_detectron2", labels + ending),
                voc_facts(part),
            )


def _cross_dataset(root: str) -> Iterator[_Entry]:
    for split, folder in (("train", "training"), ("val", "validation")):
        context = os.path.join(root, "pcontext", split)
        images, labels = os.path.join(context, "image"), os.path.join(context, "label")
        yield _Entry(f"pcontext_sem_seg_{split}", images, labels, pascal_context_facts)
        ade20k = os.path.join(root, "ADE20K_2021_17_01")
        yield _Entry(
            f"ade20k_full_sem_seg_{split}",
            os.path.join(ade20k, "images_detectron2", folder),
            os.path.join(ade20k, "annotations_detectron2", folder),
            ade20k_full_facts,
            ignore_label=65535,
            label_ending="tif",
        )


def _has_classification(name: str) -> bool:
    """One record per class of an image is registered of the full sets and of their seen parts."""
    return name.startswith(("coco", "voc")) and "novel" not in name and "10k" not in name


def _register(entry: _Entry, name: str, load: Callable[..., list[Any]], evaluator_type: str) -> None:
    def records() -> list[dict[str, Any]]:
        return load(entry.label_maps, entry.images, gt_ext=entry.label_ending, image_ext="jpg")

    register_lazy_metadata(MetadataCatalog, name, entry.classes, _LAZY)
    MetadataCatalog.get(name).set(
        image_root=entry.images,
        sem_seg_root=entry.label_maps,
        evaluator_type=evaluator_type,
        ignore_label=entry.ignore_label,
    )
    DatasetCatalog.register(name, records)
