"""``MODEL.CLASS_EMBEDDINGS`` in a detection config: from prompt and vocabulary to the classifier of head and test sets.

The main process encodes, the others wait; what the model reads are ordinary files of class embeddings in
``OUTPUT_DIR/class_embeddings`` under the published keys, so that the written config can be used as it is.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from detection.zero_shot_classifier import RANDOM, find_class_rows
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from prompt_pretrain.class_embeddings import ClassEmbeddings, resolve_class_embeddings
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import Vocabulary, clean_class_name, load_vocabulary

__all__ = ["check_class_counts", "classes_of", "resolve_class_embeddings_of"]
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def resolve_class_embeddings_of(cfg: CfgNode) -> None:
    """Set the published keys of ``cfg`` in place to what ``MODEL.CLASS_EMBEDDINGS`` asks for; a collective call.

    The head: with VOCABULARY or PATH, or with a PROMPT alone, for which the classes of the training set are the
    vocabulary. ``ZEROSHOT_WEIGHT_PATH``, ``ZEROSHOT_WEIGHT_DIM``, ``USE_ZEROSHOT_CLS`` and ``ROI_HEADS.NUM_CLASSES``
    follow. Test sets, with ``RESET_CLS_TESTS``: each entry of ``TEST_CLASSIFIERS`` may be a file or a vocabulary, and
    without entries the classes of each set are its vocabulary; ``TEST_NUM_CLASSES`` follows where it is empty.

    Raises:
        InputError: embeddings that cannot be made or found, or numbers of classes that contradict each other.
    """
    node = cfg.MODEL.CLASS_EMBEDDINGS
    if node.PROMPT or node.PATH or node.VOCABULARY:
        if cfg.MODEL.META_ARCHITECTURE == "DeformableDetr":
            raise InputError("MODEL.CLASS_EMBEDDINGS is set, but the classifier of DeformableDetr is a learned one")
        _resolve_head(cfg)
    if cfg.MODEL.RESET_CLS_TESTS:
        _resolve_test_sets(cfg)
    _check_files(cfg)


def classes_of(data_set: str) -> tuple[str, ...]:
    """Class names of a registered data set; it is loaded where its registration does not tell them."""
    names = MetadataCatalog.get(data_set).get("thing_classes")
    if names is None:
        from detectron2.data import DatasetCatalog

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
    head, learned = _head_classes(cfg), not cfg.MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS
    embeddings = None if learned else _embeddings_of_head(cfg)
    # At test time each set may bring its own embeddings, whose numbers `_resolve_test_sets` has checked.
    names = cfg.DATASETS.TRAIN if not eval_only else () if cfg.MODEL.RESET_CLS_TESTS else cfg.DATASETS.TEST
    data_sets = {name: classes_of(name) for name in names}
    stored = _classes_in_checkpoint(weights)

    wrong = ""
    vocabulary = next((found for found in _train_classes(cfg, data_sets) if len(found) == head), ())
    if embeddings is not None and len(embeddings) != head:
        wrong = f"give the file of these classes, or set MODEL.ROI_HEADS.NUM_CLASSES to {len(embeddings)}"
    for name, classes in data_sets.items():
        if len(classes) != head and tuple(vocabulary[: len(classes)]) != classes:
            fix = "set MODEL.RESET_CLS_TESTS True" if eval_only else "set MODEL.CLASS_EMBEDDINGS or NUM_CLASSES"
            wrong = wrong or f"{fix} for {name}"
    if learned and stored is not None and stored != head:
        wrong = wrong or "the classifier is a learned one: give weights of these classes"
    if wrong:
        sets = ", ".join(f"{len(classes)} in {name}" for name, classes in data_sets.items()) or "none"
        raise InputError(
            f"numbers of classes disagree: head {head} (MODEL.ROI_HEADS.NUM_CLASSES), class embeddings "
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


def _resolve_head(cfg: CfgNode) -> None:
    node, head = cfg.MODEL.CLASS_EMBEDDINGS, cfg.MODEL.ROI_BOX_HEAD

    def make() -> tuple[str, int, int]:
        if node.PATH or node.VOCABULARY:
            found, name = resolve_class_embeddings(cfg, device=cfg.MODEL.DEVICE), _file_name(node.VOCABULARY or "head")
        else:
            data_set, classes = max(
                ((name, classes_of(name)) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[: _sets_to_ask(cfg)]),
                key=lambda pair: len(pair[1]),
                default=("", ()),
            )
            if not classes:
                raise InputError(
                    "MODEL.CLASS_EMBEDDINGS.PROMPT without a vocabulary; set .VOCABULARY or DATASETS.TRAIN"
                )
            found, name = _encode(cfg, [Vocabulary(data_set, classes)])[0], _file_name(data_set)
        return _write(cfg, found, name), len(found), found.width

    head.ZEROSHOT_WEIGHT_PATH, cfg.MODEL.ROI_HEADS.NUM_CLASSES, head.ZEROSHOT_WEIGHT_DIM = _on_main_process(make)
    head.USE_ZEROSHOT_CLS = True
    _log.info("class embeddings of the head: %d in %s", cfg.MODEL.ROI_HEADS.NUM_CLASSES, head.ZEROSHOT_WEIGHT_PATH)


def _sets_to_ask(cfg: CfgNode) -> int:
    """The training sets know the vocabulary; without any, the first test set."""
    return len(cfg.DATASETS.TRAIN) or 1


def _resolve_test_sets(cfg: CfgNode) -> None:
    model = cfg.MODEL
    tests, given = list(cfg.DATASETS.TEST), list(model.TEST_CLASSIFIERS)
    if not given and model.CLASS_EMBEDDINGS.PROMPT:
        given = [""] * len(tests)
    if len(given) != len(tests):
        raise InputError(
            f"MODEL.RESET_CLS_TESTS needs one of MODEL.TEST_CLASSIFIERS for each of the {len(tests)} data sets of "
            f"DATASETS.TEST, found {len(given)}; or set MODEL.CLASS_EMBEDDINGS.PROMPT and leave the list empty"
        )

    def make() -> list[tuple[str, int]]:
        missing = [index for index, entry in enumerate(given) if not _found(entry)]
        vocabularies = [_vocabulary_of(cfg, given[index], tests[index]) for index in missing]
        made = dict(zip(missing, _encode(cfg, vocabularies) if vocabularies else [], strict=True))
        results = []
        for index, entry in enumerate(given):
            found = made.get(index) or ClassEmbeddings.load(find_class_rows(entry))
            found.check(width=model.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM)
            path = _write(cfg, found, _file_name(tests[index])) if index in made else entry
            results.append((path, len(found)))
        return results

    found = _on_main_process(make)
    expected = list(model.TEST_NUM_CLASSES) or [count for _, count in found]
    for name, (path, count), number in zip(tests, found, [*expected, *[None] * len(tests)], strict=False):
        classes = len(classes_of(name))
        if not count == number == classes:
            raise InputError(
                f"numbers of classes of {name} disagree: class embeddings {count} ({path}), data set {classes}, "
                f"MODEL.TEST_NUM_CLASSES {number}; the three must be equal"
            )
    model.TEST_CLASSIFIERS, model.TEST_NUM_CLASSES = [path for path, _ in found], expected


def _vocabulary_of(cfg: CfgNode, entry: str, data_set: str) -> Vocabulary:
    if not cfg.MODEL.CLASS_EMBEDDINGS.PROMPT:
        raise InputError(_missing_embeddings(entry, "MODEL.TEST_CLASSIFIERS"))
    return load_vocabulary(entry) if entry else Vocabulary(data_set, classes_of(data_set))


def _encode(cfg: CfgNode, vocabularies: Sequence[Vocabulary]) -> list[ClassEmbeddings]:
    """Class embeddings of several vocabularies with the config's prompt; CLIP is loaded once."""
    node = cfg.MODEL.CLASS_EMBEDDINGS
    texts = ClassTexts.parse(node.PROMPT)
    for vocabulary in vocabularies:
        texts.check(vocabulary)
    clip = load_clip(node.CLIP, device=cfg.MODEL.DEVICE)
    return [ClassEmbeddings.cached(clip, names, texts, cache_dir=node.CACHE_DIR or None) for names in vocabularies]


def _write(cfg: CfgNode, embeddings: ClassEmbeddings, name: str) -> str:
    """Path of a file with the embeddings and their names."""
    path = Path(cfg.OUTPUT_DIR) / "class_embeddings" / f"{name}.safetensors"
    embeddings.save(path)
    return str(path)


def _file_name(vocabulary: str) -> str:
    return re.sub(r"[^\w+-]+", "_", Path(vocabulary).stem)[:60].strip("_") or "custom"


def _on_main_process(make: Callable[[], _T]) -> _T:
    """What ``make`` returns on the main process, on every process; its InputError is raised everywhere."""
    outcome: tuple[Any, str | None] = (None, None)
    if comm.is_main_process():
        try:
            outcome = (make(), None)
        except InputError as error:
            outcome = (None, str(error))
    value, message = comm.all_gather(outcome)[0]
    if message is not None:
        raise InputError(message)
    return value


def _check_files(cfg: CfgNode) -> None:
    """The files under the published keys exist; the model would otherwise fail after it has been built."""
    head = cfg.MODEL.ROI_BOX_HEAD
    if head.USE_ZEROSHOT_CLS and head.ZEROSHOT_WEIGHT_PATH != RANDOM and not _found(head.ZEROSHOT_WEIGHT_PATH):
        raise InputError(_missing_embeddings(head.ZEROSHOT_WEIGHT_PATH, "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH"))
    if cfg.MODEL.RESET_CLS_TRAIN and not _found(cfg.MODEL.TRAIN_CLASSIFIERS):
        raise InputError(_missing_embeddings(cfg.MODEL.TRAIN_CLASSIFIERS, "MODEL.TRAIN_CLASSIFIERS"))


def _found(path: str) -> bool:
    return os.path.isfile(find_class_rows(path)) if path else False


def _missing_embeddings(path: str, key: str) -> str:
    release = "POMP" if "pomp" in os.path.basename(path) else "Detic"
    return (
        f"no class embeddings {path!r} ({key}); the published files come with the release of {release}, "
        "tools/export_class_embeddings.py writes them for any prompt and vocabulary, and with "
        "MODEL.CLASS_EMBEDDINGS.PROMPT they are made here"
    )


def _head_classes(cfg: CfgNode) -> int:
    if cfg.MODEL.META_ARCHITECTURE == "DeformableDetr":
        return cfg.MODEL.DETR.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE == "CenterNetDetector":
        return cfg.MODEL.CENTERNET.NUM_CLASSES
    return cfg.MODEL.TRAIN_NUM_CLASSES if cfg.MODEL.RESET_CLS_TRAIN else cfg.MODEL.ROI_HEADS.NUM_CLASSES


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
        if name.endswith("cls_score.zs_weight"):
            return shape[1] - 1  # (D, C + 1): the last column is the background
        if name.endswith("box_predictor.cls_score.weight") or re.search(
            r"box_predictor\.\d+\.cls_score\.weight$", name
        ):
            return shape[0] - 1
    return None


def _shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Shapes in a checkpoint of torch, without reading its numbers; empty for other files, such as backbones."""
    if not path.endswith((".pth", ".pt")) or not os.path.isfile(path):
        return {}
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # of many kinds; the checkpointer, which reads the file next, explains them
        return {}
    content = content.get("model", content) if isinstance(content, dict) else {}
    return {name: tuple(value.shape) for name, value in content.items() if hasattr(value, "shape")}
