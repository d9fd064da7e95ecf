"""Parts of a data set: half of its classes, or some images per class kept out of training."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prompt_pretrain.classification.items import (
    ClassificationData,
    ImageItem,
    find_items,
    group_by_label,
    labels_of,
    select_items,
)
from prompt_pretrain.classification.randomness import stream_seed
from prompt_pretrain.errors import InputError

SUBSAMPLES = ("all", "base", "new")


def subsample(data: ClassificationData, which: str) -> ClassificationData:
    """The ``base`` half of the classes (the first ceil(n/2) labels), the ``new`` others, or ``all``.

    Labels, names and counts of the chosen classes are renumbered from 0.

    Raises:
        InputError: another word, or ``new`` of a data set with one class.
    """
    if which not in SUBSAMPLES:
        raise InputError(f"unknown DATASET.SUBSAMPLE_CLASSES {which!r}; expected one of {', '.join(SUBSAMPLES)}")
    if which == "all":
        return data
    middle = math.ceil(data.num_classes / 2)
    first, stop = (0, middle) if which == "base" else (middle, data.num_classes)
    if first == stop:
        raise InputError(f"{data.name} has one class only, so its 'new' half is empty; use SUBSAMPLE_CLASSES all")
    test = _between(data.test, first, stop)
    return replace(
        data,
        class_names=data.class_names[first:stop],
        class_counts=data.class_counts[first:stop],
        folders=data.folders[first:stop],
        train=_between(data.train, first, stop),
        val=test if data.val is data.test else _between(data.val, first, stop),
        test=test,
        held_out=_between(data.held_out, first, stop),
    )


def hold_out(
    full: Sequence[ImageItem], train: Sequence[ImageItem], per_class: int, seed: int
) -> tuple[Sequence[ImageItem], Sequence[ImageItem]]:
    """Keep up to ``per_class`` images of each class for choosing a checkpoint.

    They come from the images of ``full`` that ``train`` (a few-shot subset of it, or all of it) does not use. A class
    that uses all its images gives some of them up, but at most half.

    Returns:
        The training items that are left, in their order, and the held-out items, class by class.

    Raises:
        InputError: no class has an image to spare.
    """
    labels = labels_of(full)
    train_rows = np.arange(len(full)) if train is full else find_items(full, [item.path for item in train])
    used = np.zeros(len(full), dtype=bool)
    used[train_rows] = True
    spared: list[int] = []
    rng = random.Random(stream_seed("held_out", seed))
    for group in group_by_label(labels).values():
        pool = group[~used[group]]
        count = min(per_class, len(pool))
        if not len(pool):
            pool, count = group, min(per_class, len(group) // 2)
        spared += sorted(rng.sample(pool.tolist(), count))
    if not spared:
        raise InputError(
            "no class has two images, so none can be held out for choosing the checkpoint; set TEST.SELECTION to last"
        )
    given_up = np.isin(train_rows, spared)
    if given_up.any():
        train = select_items(train, np.flatnonzero(~given_up))
    return train, select_items(full, spared)


def _between(items: Sequence[ImageItem], first: int, stop: int) -> Sequence[ImageItem]:
    labels = labels_of(items)
    rows = np.flatnonzero((labels >= first) & (labels < stop))
    return select_items(items, rows, labels[rows] - first)
