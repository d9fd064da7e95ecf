"""Classification data sets by name, and the subsets of them that a run asks for."""

import difflib
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from prompt_pretrain import distributed
from prompt_pretrain.classification.class_names import tie_ceiling
from prompt_pretrain.classification.few_shot import saved_few_shot_split
from prompt_pretrain.classification.folders import read_image_folder
from prompt_pretrain.classification.imagenet import (
    read_imagenet,
    read_imagenet21k,
    read_imagenet21k_small_classes,
)
from prompt_pretrain.classification.items import ClassificationData, labels_of
from prompt_pretrain.classification.shapeworld import read_shapeworld, read_shapeworld_novel
from prompt_pretrain.classification.subsets import SUBSAMPLES, hold_out, subsample
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import find_ties

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """Reads a full data set; with ``test_only`` its training list may be empty."""

    def __call__(
        self, root: str | os.PathLike, names_file: str | os.PathLike | None, *, test_only: bool
    ) -> ClassificationData: ...


@dataclass(frozen=True)
class _Entry:
    read: Reader
    keep_val: bool  # few-shot sampling leaves the validation images alone


_ENTRIES: dict[str, _Entry] = {}


def register_dataset(name: str, read: Reader, *, keep_val: bool = False) -> None:
    """Make ``load_classification_data(name, ...)`` use ``read(root, names_file, test_only=...)``.

    Args:
        keep_val: few-shot sampling takes all validation images, as for the ImageNet sets.
    """
    _ENTRIES[name] = _Entry(read, keep_val)


def dataset_names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_ENTRIES)


def load_classification_data(
    name: str,
    root: str | os.PathLike,
    *,
    num_shots: int = -1,
    seed: int = 1,
    subsample_classes: str = "all",
    names_file: str | os.PathLike | None = None,
    held_out: int = 0,
    test_only: bool = False,
) -> ClassificationData:
    """A registered data set, reduced as asked: few-shot sampling, then holding out, then half of the classes.

    All processes of a distributed run must call this together: the first one reads and saves, the others follow.

    Args:
        name: see :func:`dataset_names`.
        root: ``DATASET.ROOT``, the folder with the data set's own folder; of ``ImageFolder`` that folder itself.
        num_shots: training images per class, -1 for all. The subset is saved in ``split_fewshot`` beside the data.
        seed: of the few-shot subset and of the held-out images.
        subsample_classes: ``all``, ``base`` or ``new`` classes.
        names_file: class names by folder, instead of the data set's own.
        held_out: images per class to keep out of training.
        test_only: do not look at training images, which may be missing; ``train`` and ``class_counts`` stay empty.

    Raises:
        InputError: an unknown name or a data set that is missing, incomplete or contradicts itself.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        nearest = difflib.get_close_matches(name, _ENTRIES, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(_ENTRIES)}"
        raise InputError(f"unknown data set {name!r} in DATASET.NAME; {hint}")
    if num_shots == 0 or num_shots < -1:
        raise InputError(f"DATASET.NUM_SHOTS must be at least 1, or -1 for all images; got {num_shots}")
    if subsample_classes not in SUBSAMPLES:
        found = f"unknown DATASET.SUBSAMPLE_CLASSES {subsample_classes!r}"
        raise InputError(f"{found}; expected one of {', '.join(SUBSAMPLES)}")
    if test_only and (num_shots != -1 or held_out):
        raise ValueError("test_only leaves no training images to sample from")

    def load() -> ClassificationData:
        full = entry.read(root, names_file or None, test_only=test_only)
        if not test_only:
            full = _sample(full, entry, num_shots, seed, held_out)
        return subsample(full, subsample_classes)

    data = _first_process_first(load)
    if distributed.is_main_process():
        _report(data)
    return data


def _sample(data: ClassificationData, entry: _Entry, num_shots: int, seed: int, held_out: int) -> ClassificationData:
    without = [name for name, count in zip(data.class_names, data.class_counts, strict=True) if not count]
    if without:
        raise InputError(f"class {without[0]!r} of {data.name} in {data.root} has no training images; add some")
    full = data.train
    if num_shots > 0:
        folder = Path(data.root) / "split_fewshot"
        train, val = saved_few_shot_split(folder, full, None if entry.keep_val else data.val, num_shots, seed)
        data = replace(data, train=train, val=data.val if val is None else val)
    if held_out > 0:
        train, spared = hold_out(full, data.train, held_out, seed)
        data = replace(data, train=train, held_out=spared)
    return data


def _first_process_first(build: Callable[[], ClassificationData]) -> ClassificationData:
    """Build the data on the first process, which fills the caches, then on the others; all fail if one does."""
    data: ClassificationData | None = None
    for first in (True, False):
        problem = None
        if distributed.is_main_process() is first:
            try:
                data = build()
            except InputError as error:
                if distributed.world_size() == 1:
                    raise
                problem = str(error)
        problems = [text for text in distributed.gather_objects(problem) if text]
        if problems:
            raise InputError(problems[0])
        if distributed.world_size() == 1:
            break
    assert data is not None
    digests = distributed.gather_objects(_digest(data) if distributed.world_size() > 1 else "")
    if len(set(digests)) > 1:
        raise InputError(f"{data.root} holds different images on the machines of this run; copy the same data to all")
    return data


def _digest(data: ClassificationData) -> str:
    digest = hashlib.sha256("\n".join(data.class_names).encode())
    for items in (data.train, data.val, data.test, data.held_out):
        digest.update(labels_of(items).tobytes())
        for item in items:
            digest.update(os.fsencode(item.path.removeprefix(data.root)))
    return digest.hexdigest()


def _report(data: ClassificationData) -> None:
    splits = ("train", "val", "test", "held_out")
    sizes = ", ".join(f"{len(getattr(data, split)):,} {split}" for split in splits)
    logger.info("%s: %d classes; images: %s", data.name, data.num_classes, sizes)
    ceiling = tie_ceiling(data.class_names, labels_of(data.test))
    repeated = sum(len(group) - 1 for group in find_ties(data.class_names).values())
    if repeated:
        logger.warning(
            "%s: %d class names repeat an earlier one; equal names get equal scores and the first class wins, so the "
            "test accuracy cannot exceed %.1f %%",
            data.name,
            repeated,
            ceiling,
        )


register_dataset("ImageNet21K", read_imagenet21k, keep_val=True)
register_dataset("ImageNet21KSmallClasses", read_imagenet21k_small_classes, keep_val=True)
register_dataset("ImageNet", read_imagenet, keep_val=True)
register_dataset("ImageFolder", read_image_folder)
register_dataset("ShapeWorld", read_shapeworld)
register_dataset("ShapeWorldNovel", read_shapeworld_novel)
