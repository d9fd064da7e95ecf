"""Whether head, class embeddings, data sets and checkpoint agree about the classes; asked before the first step."""

import logging
import os
import re

import torch

from detection.zero_shot_classifier import RANDOM, find_class_rows
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.errors import InputError
from prompt_pretrain.run_setup import explained_data
from prompt_pretrain.vocabulary import clean_class_name

__all__ = ["check_class_counts", "classes_of", "head_classes", "trained_class_names"]
_log = logging.getLogger(__name__)


def classes_of(data_set: str) -> tuple[str, ...]:
    """Class names of a registered data set; it is loaded where its registration does not tell them."""
    names = MetadataCatalog.get(data_set).get("thing_classes")
    if names is None:
        with explained_data():
            DatasetCatalog.get(data_set)  # COCO files tell their classes when they are read
        names = MetadataCatalog.get(data_set).get("thing_classes")
    if names is None:
        raise InputError(f"data set {data_set} has no class names; set thing_classes in its metadata")
    return tuple(names)


def check_class_counts(cfg: CfgNode, *, weights: str = "", eval_only: bool = False) -> None:
    """Fail unless head, class embeddings, data sets and checkpoint agree about the classes; before the first step.

    A data set may have the first classes of the head only if a training set has them all, as in the published
    training on 22,047 classes. Frozen embeddings in a checkpoint may be of other classes, for they are replaced;
    a learned classifier may not.

    Args:
        weights: the checkpoint that will be loaded; "" for none.
        eval_only: look at test sets instead of training sets.
    Raises:
        InputError: with all four numbers and what to change.
    """
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":  # knows no classes
        return
    (key, head), learned = head_classes(cfg), not cfg.MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS
    embeddings = None if learned else _embeddings_of_head(cfg)
    # At test time each set may bring its own embeddings, whose numbers `_resolve_test_sets` has checked.
    names = cfg.DATASETS.TRAIN if not eval_only else () if cfg.MODEL.RESET_CLS_TESTS else cfg.DATASETS.TEST
    data_sets = {name: classes_of(name) for name in names}
    stored = _classes_in_checkpoint(weights)

    wrong = ""
    vocabulary = next((found for found in _train_classes(cfg, data_sets) if len(found) == head), ())
    if embeddings is not None and len(embeddings) != head:
        wrong = f"give the file of these classes, or set {key} to {len(embeddings)}"
    for name, classes in data_sets.items():
        if len(classes) != head and tuple(vocabulary[: len(classes)]) != classes:
            fix = "set MODEL.RESET_CLS_TESTS True" if eval_only else f"set MODEL.CLASS_EMBEDDINGS or {key}"
            wrong = wrong or f"{fix} for {name}"
    if learned and stored is not None and stored != head:
        wrong = wrong or "the classifier is a learned one: give weights of these classes"
    if wrong:
        sets = ", ".join(f"{len(classes)} in {name}" for name, classes in data_sets.items()) or "none"
        raise InputError(
            f"numbers of classes disagree: head {head} ({key}), class embeddings "
            f"{'none' if embeddings is None else len(embeddings)} ({_source(cfg)}), data set {sets}, checkpoint "
            f"{'unknown' if stored is None else stored} ({weights or 'no weights'}); {wrong}"
        )
    if embeddings is not None:
        _check_width(cfg, embeddings, weights)
        if cfg.MODEL.WITH_CAPTION and not eval_only and _is_of_other_clip_than_captions(cfg):
            _log.warning(
                "captions are encoded by ViT-B/32, the class embeddings %s are of another CLIP: as published for POMP, "
                "regions are compared with both by one projection",
                _source(cfg),
            )
        _warn_about_other_names(embeddings, data_sets)
    if stored not in (None, head):
        _log.warning("the %d class embeddings in %s are replaced by the %d of the config", stored, weights, head)


def head_classes(cfg: CfgNode) -> tuple[str, int]:
    """The key that sets how many classes the head has in training, and their number."""
    if cfg.MODEL.META_ARCHITECTURE == "DeformableDetr":
        return "MODEL.DETR.NUM_CLASSES", cfg.MODEL.DETR.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE == "CenterNetDetector":
        return "MODEL.CENTERNET.NUM_CLASSES", cfg.MODEL.CENTERNET.NUM_CLASSES
    if cfg.MODEL.RESET_CLS_TRAIN:
        return "MODEL.TRAIN_NUM_CLASSES", cfg.MODEL.TRAIN_NUM_CLASSES
    return "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES


def trained_class_names(cfg: CfgNode) -> tuple[str, ...]:
    """Names of the classes whose classifier a training's checkpoint holds; none where nothing tells them."""
    head = cfg.MODEL.ROI_BOX_HEAD
    learned = not head.USE_ZEROSHOT_CLS or cfg.MODEL.META_ARCHITECTURE != "CustomRCNN"
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if learned:
        count = head_classes(cfg)[1]
    elif head.ZEROSHOT_WEIGHT_PATH != RANDOM:
        names = ClassEmbeddings.load(find_class_rows(head.ZEROSHOT_WEIGHT_PATH)).class_names
        if names:
            return names
    return next((names for names in _train_classes(cfg, {}) if len(names) == count), ())


def _source(cfg: CfgNode) -> str:
    if not cfg.MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS:
        return "a learned classifier"
    return cfg.MODEL.TRAIN_CLASSIFIERS if cfg.MODEL.RESET_CLS_TRAIN else cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH


def _embeddings_of_head(cfg: CfgNode) -> ClassEmbeddings | None:
    """None for random ones, whose number is that of the head."""
    return None if _source(cfg) == RANDOM else ClassEmbeddings.load(find_class_rows(_source(cfg)))


def _train_classes(cfg: CfgNode, known: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Class names of the registered training sets; of those in ``known`` without asking again."""
    found = [known.get(name) or MetadataCatalog.get(name).get("thing_classes") or () for name in cfg.DATASETS.TRAIN]
    return [tuple(names) for names in found]


def _check_width(cfg: CfgNode, embeddings: ClassEmbeddings, weights: str) -> None:
    embeddings.check(width=cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM)
    stored = next((s[0] for n, s in _shapes(weights).items() if n.endswith("cls_score.linear.weight")), None)
    if stored is not None and stored != embeddings.width:
        raise InputError(
            f"{weights} compares regions with embeddings of width {stored}, but {_source(cfg)} has width "
            f"{embeddings.width}; give weights or embeddings of the same CLIP"
        )


def _is_of_other_clip_than_captions(cfg: CfgNode) -> bool:
    node = cfg.MODEL.CLASS_EMBEDDINGS
    return "_pomp" in os.path.basename(_source(cfg)) or bool(node.PROMPT and node.CLIP != "ViT-B/32")


def _warn_about_other_names(embeddings: ClassEmbeddings, data_sets: dict[str, tuple[str, ...]]) -> None:
    for name, classes in data_sets.items():
        for row, (mine, other) in enumerate(zip(embeddings.class_names, classes, strict=False)):
            if clean_class_name(mine).strip().lower() != clean_class_name(other).strip().lower():
                _log.warning("class %d is %r in %s but %r in %s", row, other, name, mine, embeddings.source)
                break


def _classes_in_checkpoint(path: str) -> int | None:
    """Number of classes of the classifier in a checkpoint; None where there is none."""
    for name, shape in _shapes(path).items():
        if len(shape) != 2:
            continue
        if name.endswith("cls_score.zs_weight"):
            return shape[1] - 1  # (D, C + 1): the last column is the background
        if re.search(r"box_predictor(\.\d+)?\.cls_score\.weight$", name):
            return shape[0] - 1
    return None


def _shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Shapes in a checkpoint, without reading its numbers; empty for other files, such as pickled backbones."""
    if not os.path.isfile(path):
        return {}
    if path.endswith(".safetensors"):
        return _safetensors_shapes(path)
    if not path.endswith((".pth", ".pt")):
        return {}
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # of many kinds; the checkpointer, which reads the file next, explains them
        return {}
    content = content.get("model", content) if isinstance(content, dict) else {}
    entries = content.items() if isinstance(content, dict) else ()
    return {name: tuple(value.shape) for name, value in entries if isinstance(name, str) and hasattr(value, "shape")}


def _safetensors_shapes(path: str) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        return {}
