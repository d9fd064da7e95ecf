"""The paper's Table 2: transfer to ten other data sets and four other domains, its rows beside ours."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from prompt_pretrain.classification.comparison import Comparison
from prompt_pretrain.classification.imagenet_variants import DOMAIN_SETS
from prompt_pretrain.classification.paper_results import CLIP, GROUPS, TABLE_2
from prompt_pretrain.classification.registry import registered_name
from prompt_pretrain.classification.split_sets import SPLIT_SETS
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import load_vocabulary

logger = logging.getLogger(__name__)

METRICS = {"accuracy": "top-1 accuracy", "perclass_accuracy": "mean per-class accuracy"}
_SHORT = {
    "Caltech101": "Caltech",
    "OxfordPets": "Pets",
    "StanfordCars": "Cars",
    "OxfordFlowers": "Flowers",
    "Food101": "Food",
    "FGVCAircraft": "Aircraft",
    "SUN397": "SUN",
    "DescribableTextures": "DTD",
    "UCF101": "UCF",
    "ImageNetV2": "V2",
    "ImageNetSketch": "Sketch",
    "ImageNetA": "A",
    "ImageNetR": "R",
}
_SOURCES = {"ImageNet21K": "ImageNet-21K", "ImageNet": "ImageNet-1K"}
_NO_VALUE = "–"


@dataclass(frozen=True)
class Choice:
    """Data sets to evaluate.

    Attributes:
        names: registered names of those that are there, in order, none twice.
        groups: the groups of the table that were asked for.
        missing: those of a group that are not there -> folder where they should be.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    missing: Mapping[str, Path]


def choose_datasets(names: Sequence[str], root: str | os.PathLike, *, skip_missing: bool = False) -> Choice:
    """What ``names`` stand for: data sets, ``cross-dataset`` (ten), ``cross-domain`` (four) or ``all`` of these.

    Raises:
        InputError: an unknown name; without ``skip_missing``, sets of a group that are not below ``root``, all named.
            One that was asked for by its own name is left to its reader, which says what it lacks.
    """
    groups = tuple(group for group in GROUPS if group in names or "all" in names)
    chosen: list[str] = []
    for name in names:
        members = [group for group in GROUPS if name in ("all", group)]
        chosen += [member for group in members for member in GROUPS[group]] if members else [registered_name(name)]
    chosen = list(dict.fromkeys(chosen))
    known = {member for group in (GROUPS if skip_missing else groups) for member in GROUPS[group]}
    folders = {name: _folder(name, root) for name in chosen if name in known}
    missing = {name: folder for name, folder in folders.items() if not folder.is_dir()}
    if missing and not skip_missing:
        listed = ", ".join(f"{name} ({folder})" for name, folder in missing.items())
        raise InputError(
            f"{len(missing)} of {len(folders)} data sets are not there: {listed}; get them (see "
            "docs/DATASETS_CLASSIFICATION.md), or leave them out of the table with --skip-missing"
        )
    for name, folder in missing.items():
        logger.warning("%s is left out: there is no folder %s", name, folder)
    present = tuple(name for name in chosen if name not in missing)
    if not present:
        raise InputError(f"none of the data sets is below {root}; set --data-root to the folder that holds theirs")
    return Choice(present, groups, missing)


def source_name(data_set: str) -> str:
    """How the table calls what a prompt was learned on."""
    return _SOURCES.get(data_set, data_set)


@dataclass(frozen=True)
class TransferTable:
    """Our results on groups of data sets.

    Attributes:
        comparisons: one per data set, with equal rows; those of other data sets are left out.
        sources: per row, what it was learned on; empty for hand-written prompts.
        with_paper: show the paper's rows; they are for the test images of all classes only.
    """

    comparisons: Sequence[Comparison]
    sources: Sequence[str]
    groups: Sequence[str]
    missing: Mapping[str, Path]
    with_paper: bool = True

    def text(self) -> str:
        """Per group a block of overall accuracy, ours and the paper's, and one of our mean per-class accuracy."""
        parts = []
        for group in self.groups:
            for metric in METRICS:
                parts += [self._block(group, metric), ""]
        return "\n".join(parts + self.notes())

    def notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        notes = []
        if self.with_paper:
            notes.append(
                "paper: Table 2 of arXiv 2304.04704, ViT-B/16, overall top-1; baselines learned on 16 images per class"
            )
            clips = {found.clip_id for found in self._found().values()}
            others = sorted(clip for clip in clips if CLIP.replace("/", "-") not in clip.replace("/", "-"))
            if others:
                notes.append(f"ours: of {', '.join(others)}; the paper's numbers are of {CLIP}")
        for name, found in self._found().items():
            count, published = len(found.class_names), len(load_vocabulary(name))
            if count != published and self.with_paper:
                notes.append(f"{name}: {count} classes here, {published} in the published set: not comparable")
        for name, folder in self.missing.items():
            notes.append(f"missing: {name}, expected in {folder}; averages leave it out, the paper's too")
        return notes

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = self._found()
        groups = {group: list(GROUPS[group]) for group in self.groups}
        rows = []
        for index, (name, source) in enumerate(zip(self._names(), self.sources, strict=True)):
            row: dict[str, Any] = {"name": name, "source": source}
            for metric in METRICS:
                row[metric] = {data: one.rows[index].metrics[metric] for data, one in found.items()}
                row[metric + "_average"] = {group: self._mean(group, row[metric]) for group in groups}
            rows.append(row)
        paper = [
            {
                "name": row.name,
                "source": row.source,
                "accuracy": {data: row.accuracy[data] for group in groups.values() for data in group},
                "accuracy_average": {group: self._paper_mean(group, row.accuracy, row.average) for group in groups},
            }
            for row in (TABLE_2 if self.with_paper else ())
        ]
        return {
            "table": "Table 2 of arXiv 2304.04704",
            "groups": groups,
            "ours": rows,
            "paper": paper,
            "missing": [{"data_set": name, "expected_in": str(folder)} for name, folder in self.missing.items()],
            "notes": self.notes(),
        }

    def _found(self) -> dict[str, Comparison]:
        wanted = {data for group in self.groups for data in GROUPS[group]}
        return {one.data_set: one for one in self.comparisons if one.data_set in wanted}

    def _names(self) -> list[str]:
        return [row.name for row in self.comparisons[0].rows]

    def _mean(self, group: str, values: Mapping[str, float]) -> float | None:
        there = [values[data] for data in GROUPS[group] if data in values]
        return fmean(there) if there else None

    def _paper_mean(self, group: str, values: Mapping[str, float], printed: Mapping[str, float]) -> float | None:
        """As printed; over the data sets that we have where some are missing, to compare like with like."""
        found = self._found()
        here = {data: values[data] for data in GROUPS[group] if data in found}
        return printed[group] if len(here) == len(GROUPS[group]) else self._mean(group, here)

    def _block(self, group: str, metric: str) -> str:
        found, members = self._found(), GROUPS[group]
        there = sum(data in found for data in members)
        average = "average" if there == len(members) else f"avg of {there}"
        lines = [["", "source", *(_SHORT.get(data, data) for data in members), average]]
        for index, (name, source) in enumerate(zip(self._names(), self.sources, strict=True)):
            values = {data: one.rows[index].metrics[metric] for data, one in found.items()}
            lines.append(_cells(f"ours: {name}", source, members, values, self._mean(group, values), ".2f"))
        for row in TABLE_2 if self.with_paper and metric == "accuracy" else ():
            mean = self._paper_mean(group, row.accuracy, row.average)
            lines.append(_cells(f"paper: {row.name}", row.source, members, row.accuracy, mean, ".1f"))
        return f"{group}, {METRICS[metric]} in percent\n" + _aligned(lines)


def _cells(
    name: str, source: str, members: Sequence[str], values: Mapping[str, float], mean: float | None, form: str
) -> list[str]:
    show: Callable[[float | None], str] = lambda value: _NO_VALUE if value is None else format(value, form)  # noqa: E731
    return [name, source or _NO_VALUE, *(show(values.get(data)) for data in members), show(mean)]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def _folder(name: str, root: str | os.PathLike) -> Path:
    return (SPLIT_SETS[name] if name in SPLIT_SETS else DOMAIN_SETS[name]).image_folder(root)
