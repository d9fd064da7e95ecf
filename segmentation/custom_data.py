"""Training and evaluation on one's own data: folders of images and of label maps, and files of class names.

Nothing to register or to convert: image and label map of one scene have the same name, the value of a pixel is the
position of its class in the names file, 255 (65535 in maps of 16 bits) stands for no class.
"""

import argparse
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.custom_vocabulary import check_class_names
from prompt_pretrain.errors import InputError
from prompt_pretrain.image_inputs import IMAGE_SUFFIXES
from prompt_pretrain.untyped_settings import UntypedSettings
from prompt_pretrain.vocabulary import load_vocabulary
from segmentation.data.datasets.pairs import pair_files
from segmentation.evaluation.label_maps import read_label_map

__all__ = ["TEST_NAME", "TRAIN_NAME", "CustomMaps", "is_asked_for", "register_custom_data"]
_log = logging.getLogger(__name__)
TRAIN_NAME, TEST_NAME = "custom_sem_seg_train", "custom_sem_seg_test"
_IMAGES = tuple(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
_LABELS = ("png", "tif", "tiff", "bmp")  # formats that change no value
_OPTIONS = ("train_images", "train_labels", "test_images", "test_labels", "classes", "test_classes")
_CHECKED = 64  # label maps that are read before a run starts; the loaders check the others


@dataclass(frozen=True)
class CustomMaps:
    """A folder of images and one of label maps.

    Attributes:
        class_names: in the order of the values in label maps.
        pairs: (image, label map) of every scene, sorted by name.
    """

    class_names: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def read(cls, images: str | os.PathLike, labels: str | os.PathLike, class_names: Sequence[str]) -> "CustomMaps":
        """Pair the files and look into some of the label maps.

        Raises:
            InputError: a missing folder, no pair of files of one name, label maps that cannot be read, have values that
                are no class, or hold no class at all.
        """
        for what, folder in (("images", images), ("label maps", labels)):
            if not Path(folder).is_dir():
                raise InputError(f"no folder {folder} of {what}; give an existing folder")
        pairs = pair_files(os.fspath(images), os.fspath(labels), _IMAGES, _LABELS)
        data = cls(tuple(class_names), tuple(pairs))
        data._look_into_label_maps()
        return data

    @property
    def ignore_label(self) -> int:
        """The value of pixels without a class."""
        return 255 if len(self.class_names) <= 255 else 65535

    def records(self) -> list[dict[str, Any]]:
        """One record per scene."""
        return [{"file_name": image, "sem_seg_file_name": label_map} for image, label_map in self.pairs]

    def class_records(self) -> list[dict[str, Any]]:
        """One record per class of a scene with its "category_id", for mask classification; reads all label maps."""
        return [
            {**record, "category_id": label}
            for record in self.records()
            for label in np.unique(read_label_map(record["sem_seg_file_name"])).tolist()
            if label != self.ignore_label
        ]

    def _look_into_label_maps(self) -> None:
        step = max(1, len(self.pairs) // _CHECKED)
        shown = False
        for _, path in self.pairs[::step]:
            values = np.unique(read_label_map(path))
            values = values[values != self.ignore_label]
            shown = shown or len(values) > 0
            wrong = values[values >= len(self.class_names)]
            if len(wrong):
                raise InputError(
                    f"label map {path} holds {wrong[0]}, but there are {len(self.class_names)} classes, 0 to "
                    f"{len(self.class_names) - 1}, and {self.ignore_label} for no class; name them all, or correct it"
                )
        if not shown:
            raise InputError(f"no class in any of the label maps looked at, such as {self.pairs[0][1]}; give others")


def is_asked_for(args: argparse.Namespace) -> bool:
    """Whether the command line names custom data."""
    return any(getattr(args, name, None) for name in _OPTIONS)


def register_custom_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Point the config at the folders and the class names of the command line.

    Registers the data sets ``custom_sem_seg_train`` and ``custom_sem_seg_test``. Sets, unless ``args.opts`` does: the
    data sets, the number of classes, the value of ignored pixels. Test classes that are not among those of training
    count as unseen: metrics tell them apart (``mIoU-base``, ``mIoU-unbase``, ``hIoU-base``).

    Args:
        cfg: not frozen, after the YAML file and the command line were merged.
        args: the six options (each may be None or missing), ``eval_only``, ``opts``.
    Raises:
        InputError: one option without its companion, training without training data, bad names or data (see
            :meth:`CustomMaps.read`), other test classes for a model with a learned classifier.
    """
    train, test = _read(args, "train"), _read(args, "test")
    if train is None and test is None:
        raise InputError("no custom data given; add --train-images or --test-images, each with its labels")
    if train is None and not getattr(args, "eval_only", False):
        raise InputError("--test-images alone says nothing to train on; add --train-images, or --eval-only to evaluate")
    seen = _names(args.classes, "--classes")
    if test and test.class_names != seen and not cfg.MODEL.META_ARCHITECTURE.startswith(("ZeroShot", "ProposalClip")):
        raise InputError(
            f"--test-classes {args.test_classes} differ from --classes, but the classifier of "
            f"{cfg.MODEL.META_ARCHITECTURE} is a learned one; take a config with ZeroShotMaskFormer"
        )
    chosen = UntypedSettings(cfg, getattr(args, "opts", None))
    by_class = cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_binary_semantic"
    for name, data in ((TRAIN_NAME, train), (TEST_NAME, test)):
        if data:
            _register(name, data, seen, by_class=by_class)
            chosen.set("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", data.ignore_label)
            _log.info("%s: %d classes, %d images", name, len(data.class_names), len(data.pairs))
    chosen.set("DATASETS.TRAIN", (TRAIN_NAME,) if train else ())
    chosen.set("DATASETS.TEST", (TEST_NAME,) if test else ())
    chosen.set("MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(seen))


def _read(args: argparse.Namespace, split: str) -> CustomMaps | None:
    images, labels = (getattr(args, f"{split}_{part}", None) for part in ("images", "labels"))
    if bool(images) != bool(labels):
        given, missing = ("images", "labels") if images else ("labels", "images")
        raise InputError(f"--{split}-{given} needs --{split}-{missing} as well")
    if not getattr(args, "classes", None):
        raise InputError("custom data need --classes, a file with the class names, one per line")
    own = getattr(args, "test_classes", None) if split == "test" else None
    if not images:
        if own:
            raise InputError("--test-classes needs --test-images and --test-labels")
        return None
    names = _names(own, "--test-classes") if own else _names(args.classes, "--classes")
    return CustomMaps.read(images, labels, names)


def _names(file: str, option: str) -> tuple[str, ...]:
    if not Path(file).is_file():
        raise InputError(f"{option} {file}: no such file; give a text file with one class name per line")
    names = check_class_names(load_vocabulary(file).class_names, file)
    repeated = [name for name, count in Counter(name.strip() for name in names).items() if count > 1]
    if repeated:
        raise InputError(f"{file} has the class {repeated[0]!r} twice; each name needs its own value in label maps")
    return names


def _register(name: str, data: CustomMaps, seen: Sequence[str], *, by_class: bool) -> None:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, data.class_records if by_class else data.records)
    flags = [int(class_name in seen) for class_name in data.class_names]
    metadata = MetadataCatalog.get(name)
    metadata.set(
        stuff_classes=list(data.class_names),
        ignore_label=data.ignore_label,
        evaluator_type="classification" if by_class else "sem_seg",
        trainable_flag=flags,
    )
    if 0 in flags and 1 in flags:
        metadata.evaluation_set = {"base": [label for label, flag in enumerate(flags) if flag]}
