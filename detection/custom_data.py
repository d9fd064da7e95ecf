"""Training and evaluation on one's own data: a COCO json and a folder of images, nothing to register or to convert.

The category names of the json become the vocabulary, in the order of their ids.
"""

import argparse
import json
import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detection.custom_vocabulary import class_texts_of
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from prompt_pretrain.annotation_fields import find_wrong_row
from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.custom_vocabulary import check_class_names
from prompt_pretrain.errors import InputError
from prompt_pretrain.untyped_settings import UntypedSettings

__all__ = ["TEST_NAME", "TRAIN_NAME", "CustomData", "register_custom_data"]
_log = logging.getLogger(__name__)
TRAIN_NAME, TEST_NAME = "custom_train", "custom_test"


@dataclass(frozen=True)
class CustomData:
    """What a COCO json says of itself.

    Attributes:
        json_file, images: paths.
        class_names: by ascending category id.
        image_counts: images that show each class, crowds apart; by ascending category id.
        num_images, num_annotations: crowds count.
        masks: whether every annotation has one.
    """

    json_file: str
    images: str
    class_names: tuple[str, ...]
    image_counts: tuple[int, ...] = field(repr=False)
    num_images: int
    num_annotations: int
    masks: bool

    @classmethod
    def read(cls, json_file: str | os.PathLike, images: str | os.PathLike) -> "CustomData":
        """Read and check both.

        Raises:
            InputError: a missing file or folder, no COCO json, empty or repeated class names, no images, annotations of
                unknown categories, the first image is not in the folder.
        """
        path, folder = Path(json_file), Path(images)
        if not path.is_file():
            raise InputError(f"no annotations {path}; expected a COCO json")
        if not folder.is_dir():
            raise InputError(f"no folder of images {folder}; expected the folder of the file names in {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON ({error}); expected a COCO json") from error
        lists = ("images", "annotations", "categories")
        missing = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
        if missing:
            raise InputError(f"{path} has no list {missing[0]!r}; expected a COCO json with {', '.join(lists)}")
        for key, what in zip(lists, ("image", "annotation", "category"), strict=True):
            problem = find_wrong_row(content[key], what, ())
            if problem:
                raise InputError(f"{path}: {problem}")
        try:
            return cls._of(content, path, folder)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: an image, annotation or category is damaged or lacks a key ({error!r}); expected a COCO json"
            ) from error

    @classmethod
    def _of(cls, content: dict[str, list[dict[str, Any]]], path: Path, folder: Path) -> "CustomData":
        categories = sorted(content["categories"], key=lambda category: category["id"])
        names = check_class_names([category["name"] for category in categories], f"'categories' of {path}")
        for what, values in (("id", [category["id"] for category in categories]), ("name", list(names))):
            repeated = [value for value, count in Counter(values).items() if count > 1]
            if repeated:
                raise InputError(f"{path} has two categories with the {what} {repeated[0]!r}; each needs its own")
        if not content["images"]:
            raise InputError(f"{path} lists no images")
        first = content["images"][0]["file_name"]
        if not (folder / first).is_file():
            raise InputError(f"image {first} of {path} is not in {folder}; give the folder that the names start from")
        known = {category["id"] for category in categories}
        shown: dict[Any, set[Any]] = {number: set() for number in known}
        masks = bool(content["annotations"])
        for annotation in content["annotations"]:
            if annotation["category_id"] not in known:
                raise InputError(
                    f"{path}: annotation {annotation.get('id')} has the category_id {annotation['category_id']}, which "
                    f"is not among the {len(known)} categories"
                )
            masks = masks and bool(annotation.get("segmentation"))
            if not annotation.get("iscrowd", 0):
                shown[annotation["category_id"]].add(annotation["image_id"])
        counts = tuple(len(shown[category["id"]]) for category in categories)
        return cls(str(path), str(folder), names, counts, len(content["images"]), len(content["annotations"]), masks)


def register_custom_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Point the config at the data of ``--train-json``, ``--train-images``, ``--test-json`` and ``--test-images``.

    Registers the data sets ``custom_train`` and ``custom_test``. Sets, unless ``args.opts`` does: the data sets; the
    vocabulary and the class count, from the training json, or without one from the test json; embeddings of its own for
    a test set of other classes; no masks where the json has none; one training set, completely annotated, in place of
    mixtures, image labels and federated loss.

    Args:
        cfg: not frozen, after the YAML file and the command line were merged.
        args: the four options (each may be None or missing), ``eval_only``, ``opts``.
    Raises:
        InputError: one option without its companion, training without training data, bad data (see
            :meth:`CustomData.read`), no annotations, a test set of other classes for a model that cannot change them.
    """
    train, test = _read(args, "train"), _read(args, "test")
    if train is None and not getattr(args, "eval_only", False):
        raise InputError("--test-json alone says nothing to train on; add --train-json, or --eval-only to evaluate")
    main = train or test
    if main is None:
        raise InputError("no custom data given; add --train-json or --test-json")
    for data in filter(None, (train, test)):
        if data.num_annotations == 0:
            raise InputError(f"{data.json_file} holds no annotations; there is nothing to learn from or to evaluate")
    chosen = UntypedSettings(cfg, getattr(args, "opts", None))
    if train:
        _register(TRAIN_NAME, train)
        _simplify_training(chosen, train)
    if test:
        _register(TEST_NAME, test)
    chosen.set("DATASETS.TRAIN", (TRAIN_NAME,) if train else ())
    chosen.set("DATASETS.TEST", (TEST_NAME,) if test else ())
    chosen.set("MODEL.MASK_ON", cfg.MODEL.MASK_ON and main.masks)
    _set_vocabulary(chosen, main)
    _set_test_vocabulary(chosen, main, test)
    _log.info("custom data: %d classes, %d images, %d annotations", len(main.class_names), *_size(main))


def _read(args: argparse.Namespace, split: str) -> CustomData | None:
    json_file, images = (getattr(args, f"{split}_{part}", None) for part in ("json", "images"))
    if bool(json_file) != bool(images):
        given, missing = (
            (f"--{split}-json", f"--{split}-images") if json_file else (f"--{split}-images", f"--{split}-json")
        )
        raise InputError(f"{given} needs {missing} as well")
    return CustomData.read(json_file, images) if json_file else None


def _register(name: str, data: CustomData) -> None:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # The names are known before the json is loaded, for checks and for drawing.
    register_coco_instances(name, {"thing_classes": list(data.class_names)}, data.json_file, data.images)


def _set_vocabulary(chosen: UntypedSettings, data: CustomData) -> None:
    cfg = chosen.cfg
    chosen.set("MODEL.ROI_HEADS.NUM_CLASSES", len(data.class_names))
    chosen.set("MODEL.CENTERNET.NUM_CLASSES", len(data.class_names))
    chosen.set("MODEL.DETR.NUM_CLASSES", len(data.class_names))
    if not cfg.MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS:
        return
    if not cfg.MODEL.CLASS_EMBEDDINGS.PATH:
        prompt, clip = class_texts_of(cfg)
        chosen.set("MODEL.CLASS_EMBEDDINGS.PROMPT", prompt)
        chosen.set("MODEL.CLASS_EMBEDDINGS.CLIP", clip)
    chosen.set("MODEL.CLASS_EMBEDDINGS.VOCABULARY", data.json_file)


def _simplify_training(chosen: UntypedSettings, train: CustomData) -> None:
    cfg = chosen.cfg
    chosen.set("WITH_IMAGE_LABELS", False)
    chosen.set("MODEL.DYNAMIC_CLASSIFIER", False)
    chosen.set("MODEL.RESET_CLS_TRAIN", False)
    chosen.set("MODEL.DATASET_LOSS_WEIGHT", [])
    if cfg.DATALOADER.SAMPLER_TRAIN == "MultiDatasetSampler":
        chosen.set("DATALOADER.SAMPLER_TRAIN", "TrainingSampler")
    # Every class is looked for in every image, so all of them are negatives where they are absent.
    chosen.set("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", False)
    if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS or cfg.MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS:
        path = Path(cfg.OUTPUT_DIR) / "custom_train_cat_info.json"
        if comm.is_main_process():
            rows = zip(train.class_names, train.image_counts, strict=True)
            write_json(path, [{"id": i, "name": n, "image_count": c} for i, (n, c) in enumerate(rows, start=1)])
        comm.synchronize()
        chosen.set("MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", str(path))


def _set_test_vocabulary(chosen: UntypedSettings, main: CustomData, test: CustomData | None) -> None:
    """Embeddings of its own for a test set of other classes."""
    cfg = chosen.cfg
    other = test is not None and test.class_names != main.class_names
    if test is not None and other and (not cfg.MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS or cfg.MODEL.CLASS_EMBEDDINGS.PATH):
        why = "its embeddings come from a file" if cfg.MODEL.CLASS_EMBEDDINGS.PATH else "its classifier is learned"
        raise InputError(
            f"{test.json_file} has other classes than {main.json_file} and this model cannot take others, for {why}; "
            "evaluate with --eval-only and --test-json alone, or set MODEL.CLASS_EMBEDDINGS.PROMPT"
        )
    chosen.set("MODEL.RESET_CLS_TESTS", other)
    chosen.set("MODEL.TEST_CLASSIFIERS", [])
    chosen.set("MODEL.TEST_NUM_CLASSES", [])


def _size(data: CustomData) -> tuple[int, int]:
    return data.num_images, data.num_annotations
