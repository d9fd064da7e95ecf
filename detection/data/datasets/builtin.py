"""The data sets of Detic by their published names and paths."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from detection.data.datasets.annotation_json import not_found
from detection.data.datasets.extended_lvis import custom_register_lvis_instances
from detection.data.datasets.lazy_metadata import register_lazy_metadata
from detection.data.datasets.oid import register_oid_instances
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_lvis_instances
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from prompt_pretrain.errors import InputError
from prompt_pretrain.lazy_metadata import dataset_root
from prompt_pretrain.vocabulary import load_vocabulary

__all__ = ["dataset_root", "register_detection_datasets"]

Facts = dict[str, Any]


class _Entry(NamedTuple):
    name: str
    images: str  # folder and json, relative to the data root
    json_file: str
    register: Callable[[str, Facts, str, str], None]
    classes: Callable[[], Facts]


def register_detection_datasets(root: str) -> None:
    """Register them all below the folder ``root``; COCO, LVIS train and LVIS val are detectron2's own."""
    for entry in _ENTRIES:
        register_lazy_metadata(entry.name, entry.classes)
        entry.register(entry.name, {}, os.path.join(root, entry.json_file), os.path.join(root, entry.images))


def _register_coco(name: str, metadata: Facts, json_file: str, image_root: str) -> None:
    DatasetCatalog.register(name, lambda: _load_coco(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def _load_coco(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    try:
        return load_coco_json(json_file, image_root, name)
    except FileNotFoundError as error:
        raise not_found(json_file) from error
    except AssertionError as error:
        if "thing_" not in str(error):
            raise
        count = len(MetadataCatalog.get(name).thing_classes)
        raise InputError(
            f"the categories of {json_file} are not the {count} classes of {name}; prepare the file as "
            f"datasets/README.md says, or register it under another name"
        ) from error


def _register_imagenet(name: str, metadata: Facts, json_file: str, image_root: str) -> None:
    custom_register_lvis_instances(name, metadata, json_file, image_root, evaluator_type="imagenet")


def _lvis() -> Facts:
    return get_lvis_instances_meta("lvis_v1_train")


def _coco() -> Facts:
    return _get_builtin_metadata("coco")


def _vocabulary(spec: str) -> Callable[[], Facts]:
    def read() -> Facts:
        vocabulary = load_vocabulary(spec)
        ranks = {number: rank for rank, number in enumerate(sorted(vocabulary.ids))}
        return {"thing_classes": list(vocabulary.class_names), "thing_dataset_id_to_contiguous_id": ranks}

    return read


def _lvis_22k() -> Facts:
    return {"thing_classes": list(load_vocabulary("lvis_22k").class_names)}


_EXTENDED = custom_register_lvis_instances
_LVIS_MINIVAL = "lvis/lvis_v1_minival_inserted_image_name.json"
_BASE, _NOVEL = _vocabulary("coco:base"), _vocabulary("coco:novel")
_O365, _OID = _vocabulary("objects365"), _vocabulary("openimages")
_O365_JSON = "objects365/annotations/zhiyuan_objv2_{}.json"
_OID_JSON = "oid/annotations/oid_challenge_2019_{}.json"
_ZERO_SHOT = "coco/zero-shot/instances_{}.json"
_IMAGENET = "imagenet/ImageNet-LVIS/"

_ENTRIES = [
    # LVIS; the images that are in COCO's val2017 are its "minival"
    _Entry("lvis_v1_minival", "coco/", _LVIS_MINIVAL, register_lvis_instances, _lvis),
    _Entry("lvis_v1_train_norare", "coco/", "lvis/lvis_v1_train_norare.json", _EXTENDED, _lvis),
    _Entry("lvis_v1_train+coco", "coco/", "lvis/lvis_v1_train+coco_mask.json", _EXTENDED, _lvis),
    _Entry("lvis_v1_train_22k", "coco/", "lvis/lvis_v1_train_lvis-22k.json", _EXTENDED, _lvis_22k),
    # images with labels, with captions
    _Entry(
        "imagenet_lvis_v1", _IMAGENET, "imagenet/annotations/imagenet_lvis_image_info.json", _register_imagenet, _lvis
    ),
    _Entry(
        "imagenet_lvis-22k",
        _IMAGENET,
        "imagenet/annotations/imagenet-22k_image_info_lvis-22k.json",
        _register_imagenet,
        _lvis_22k,
    ),
    _Entry("cc3m_v1_val", "cc3m/validation/", "cc3m/val_image_info.json", _EXTENDED, _lvis),
    _Entry("cc3m_v1_train", "cc3m/training/", "cc3m/train_image_info.json", _EXTENDED, _lvis),
    _Entry("cc3m_v1_train_tags", "cc3m/training/", "cc3m/train_image_info_tags.json", _EXTENDED, _lvis),
    _Entry("cc3m_coco_train_tags", "cc3m/training/", "cc3m/coco_train_image_info_tags.json", _EXTENDED, _coco),
    _Entry(
        "coco_caption_train_tags",
        "coco/train2017/",
        "coco/annotations/captions_train2017_tags_allcaps.json",
        _EXTENDED,
        _coco,
    ),
    # COCO with base and novel classes; "oriorder" files list all 80
    _Entry("coco_zeroshot_train", "coco/train2017", _ZERO_SHOT.format("train2017_seen_2"), _register_coco, _BASE),
    _Entry("coco_zeroshot_val", "coco/val2017", _ZERO_SHOT.format("val2017_unseen_2"), _register_coco, _NOVEL),
    _Entry("coco_not_zeroshot_val", "coco/val2017", _ZERO_SHOT.format("val2017_seen_2"), _register_coco, _BASE),
    _Entry(
        "coco_generalized_zeroshot_val",
        "coco/val2017",
        _ZERO_SHOT.format("val2017_all_2_oriorder"),
        _register_coco,
        _coco,
    ),
    _Entry(
        "coco_zeroshot_train_oriorder",
        "coco/train2017",
        _ZERO_SHOT.format("train2017_seen_2_oriorder"),
        _register_coco,
        _coco,
    ),
    # Objects365, Open Images
    _Entry(
        "objects365_v2_train", "objects365/train", _O365_JSON.format("train_fixname_fixmiss"), _register_coco, _O365
    ),
    _Entry("objects365_v2_val", "objects365/val", _O365_JSON.format("val_fixname"), _register_coco, _O365),
    _Entry("objects365_v2_val_rare", "objects365/val", _O365_JSON.format("val_fixname_rare"), _register_coco, _O365),
    _Entry("oid_train", "oid/images/", _OID_JSON.format("train_bbox"), register_oid_instances, _OID),
    _Entry(
        "oid_val_expanded", "oid/images/validation/", _OID_JSON.format("val_expanded"), register_oid_instances, _OID
    ),
    _Entry(
        "oid_val_expanded_rare",
        "oid/images/validation/",
        _OID_JSON.format("val_expanded_rare"),
        register_oid_instances,
        _OID,
    ),
]
