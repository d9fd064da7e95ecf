"""A fixed number of masks per class for mask classification (ZSSeg's stage 1)."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

__all__ = ["log_class_histogram", "sample_per_class"]

logger = logging.getLogger(__name__)

_COLUMNS = 3  # pairs of class and count side by side


def sample_per_class(records: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` random records of each "category_id", classes in the order of their first record.

    A class with fewer keeps all of them. As published, a record may be drawn twice. ``count`` <= 0 keeps everything.
    """
    if count <= 0:
        return list(records)
    groups: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["category_id"], []).append(record)
    generator = np.random.default_rng(seed)
    chosen = []
    for group in groups.values():
        if len(group) < count:
            chosen += group
        else:
            chosen += [group[index] for index in generator.choice(len(group), size=count)]
    return chosen


def log_class_histogram(records: Sequence[dict[str, Any]], class_names: Sequence[str]) -> None:
    """Log how many records each class has."""
    counts = Counter(record["category_id"] for record in records)
    cells = [value for label, name in enumerate(class_names) for value in (name, counts[label])]
    rows = [cells[start : start + 2 * _COLUMNS] for start in range(0, len(cells), 2 * _COLUMNS)]
    table = tabulate(rows, headers=["class", "masks"] * _COLUMNS, tablefmt="pipe")
    logger.info("%d masks of %d classes:\n%s", len(records), len(counts), table)
