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

from detection.class_counts import classes_of
from detection.zero_shot_classifier import RANDOM, find_class_rows
from detectron2.config import CfgNode
from detectron2.utils import comm
from prompt_pretrain.class_embeddings import ClassEmbeddings, resolve_class_embeddings
from prompt_pretrain.class_texts import ClassTexts
from prompt_pretrain.clip import load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import Vocabulary, load_vocabulary

__all__ = ["resolve_class_embeddings_of"]
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
        if cfg.MODEL.META_ARCHITECTURE != "CustomRCNN":
            raise InputError(
                f"MODEL.CLASS_EMBEDDINGS is set, but the classifier of {cfg.MODEL.META_ARCHITECTURE} is a learned one; "
                "take a config with CustomRCNN"
            )
        _resolve_head(cfg)
    if cfg.MODEL.RESET_CLS_TESTS:
        _resolve_test_sets(cfg)
    _check_files(cfg)


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
                raise InputError("MODEL.CLASS_EMBEDDINGS has a PROMPT but no vocabulary; set VOCABULARY too")
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
