"""Checks of classification sets: splits, labels, names and images."""

from collections import Counter
from pathlib import Path

from dataset_checks.files import check_images
from dataset_checks.report import Report

from prompt_pretrain.classification.imagenet_variants import DOMAIN_SETS
from prompt_pretrain.classification.items import labels_of
from prompt_pretrain.classification.registry import load_classification_data, registered_name
from prompt_pretrain.classification.split_files import SPLITS, Rows, class_names_of, missing_images
from prompt_pretrain.classification.split_sets import SPLIT_SETS, SplitSet, difference_from_published
from prompt_pretrain.classification.tar_archives import is_archive_member
from prompt_pretrain.errors import InputError


def is_classification_set(name: str) -> bool:
    """Whether a classification set is registered under this name."""
    try:
        registered_name(name)
    except InputError:
        return False
    return True


def check_classification(report: Report, root: Path, *, with_files: bool, workers: int) -> None:
    """Check the set that ``report`` is about, below ``root``; ``with_files`` opens every image."""
    name = registered_name(report.name)
    images = _check_split(report, SPLIT_SETS[name], root) if name in SPLIT_SETS else _check_loaded(report, name, root)
    if with_files:
        check_images(report, [{"file_name": path} for path in images], workers)


def _check_split(report: Report, entry: SplitSet, root: Path) -> list[str]:
    """Check what a split file says; returns the images that are there."""
    file, folder = entry.split_file(root), entry.image_folder(root)
    try:
        rows = entry.rows(root, report.error)
        class_names = class_names_of(rows, file, report.error)
    except InputError as error:
        report.error("split file", str(error))
        return []
    report.facts["classes"] = len(class_names)
    for split in SPLITS:
        report.facts[f"{split} images"] = len(rows[split])
    difference = difference_from_published(entry.name, class_names)
    if difference:
        report.warning("classes differ from the published ones", f"{file}: {difference}; results are not comparable")
    _check_repetitions(report, file, rows)
    there = []
    for split in SPLITS:
        missing = set(missing_images(rows[split], folder))
        for path in sorted(missing):
            report.error("missing image", f"{file} lists {path} in {split!r}, which {folder} does not hold")
        there += [str(folder / row.path) for row in rows[split] if row.path not in missing]
    return list(dict.fromkeys(there))


def _check_repetitions(report: Report, file: Path, rows: Rows) -> None:
    """Images that are listed more than once: within a split they count twice, across splits they leak."""
    seen: dict[str, str] = {}
    for split in SPLITS:
        for path, count in Counter(row.path for row in rows[split]).items():
            if count > 1:
                report.warning("image listed twice", f"{file} lists {path} {count} times in {split!r}")
            other = seen.setdefault(path, split)
            if other != split:
                severity = report.error if split == "test" else report.warning
                severity("image in two splits", f"{file} lists {path} in {other!r} and in {split!r}")


def _check_loaded(report: Report, name: str, root: Path) -> list[str]:
    """Check a set of class folders; returns its images that are files."""
    try:
        data = load_classification_data(name, root, test_only=name in DOMAIN_SETS)
    except InputError as error:
        report.error("loading", str(error))
        return []
    report.facts["classes"] = data.num_classes
    if name in DOMAIN_SETS:
        difference = difference_from_published(name, data.class_names)
        if difference:
            report.warning("classes differ from the published ones", f"{difference}; results are not comparable")
    paths: dict[str, None] = {}
    for split in ("test",) if name in DOMAIN_SETS else SPLITS:
        items = getattr(data, split)
        report.facts[f"{split} images"] = len(items)
        without = data.num_classes - len(set(labels_of(items).tolist()))
        if without:
            report.warning("classes without images", f"{split}: {without} of {data.num_classes} classes have none")
        paths.update(dict.fromkeys(item.path for item in items if not is_archive_member(item.path)))
    return list(paths)
